"""Strong views: FixMatch's RandAugment and Cutout, of a whole batch at once on the device.

Its 14 operations and their ranges are those of the paper's table 12 (arXiv:2001.07685). They work on whole gray
levels, 0 to 255, as Pillow's do. An image gets two of them, one after the other. In each round the batch goes through
four stages, each of which changes only the images whose operation it is: an affine map, sharpening, color, and a table
of gray levels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# By name, from which to which value.
OPERATIONS = {
    "identity": (0, 0),
    "autocontrast": (0, 0),
    "equalize": (0, 0),
    "brightness": (0.05, 0.95),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "sharpness": (0.05, 0.95),
    "posterize": (4, 9),  # bits kept, whole: 4 to 8
    "solarize": (0, 256),  # the level from which on pixels are inverted
    "rotate": (-30, 30),  # degrees
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "translate_x": (-0.3, 0.3),  # of the side
    "translate_y": (-0.3, 0.3),
}
NAMES = list(OPERATIONS)
PER_IMAGE = 2
GRAY = 127.5  # what comes in from outside the image, and what Cutout leaves


class StrongParams(NamedTuple):
    """What sets each of n strong views apart."""

    operation: Tensor  # (rounds, n) int64, a number in OPERATIONS
    amount: Tensor  # (rounds, n), where in the operation's range, in [0, 1)
    cutout: Tensor  # (3, n, 1), side, row and column of the blanked square, in [0, 1)


def sample_strong_params(n: int, generator: Generator) -> StrongParams:
    """Draw the distortions of n strong views, every one its own, where ``generator`` is."""
    device = generator.device
    operation = torch.randint(0, len(OPERATIONS), (PER_IMAGE, n), generator=generator, device=device)
    amount = torch.rand(PER_IMAGE, n, generator=generator, device=device)
    return StrongParams(operation, amount, torch.rand(3, n, 1, generator=generator, device=device))


def strong_augment(x: Tensor, distortions: StrongParams) -> Tensor:
    """Distort views strongly: RandAugment, then Cutout.

    Args:
        x: (n, c, h, w) in [-1, 1], weak views; c is 3, or 1 for gray images.
        distortions: of each view.

    Returns:
        (n, c, h, w) in [-1, 1].
    """
    with torch.autocast(x.device.type, enabled=False):  # in bfloat16 gray levels would be off, and geometry by pixels
        levels = (x * 127.5 + 127.5).round()
        for operation, amount in zip(distortions.operation, distortions.amount, strict=True):
            levels = distort(levels, operation, amount)
        return cut_out(levels / 127.5 - 1, distortions.cutout)


def distort(levels: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        levels: (n, c, h, w) whole numbers 0 to 255.
        operation: (n,) numbers in ``OPERATIONS``.
        amount: (n,) where in the operation's range, in [0, 1).

    Returns:
        (n, c, h, w) whole numbers 0 to 255.
    """
    amount = amount.to(levels.dtype)
    value = torch.zeros_like(amount)
    for number, (low, high) in enumerate(OPERATIONS.values()):
        if high > low:  # a table of ranges would be a copy to the device, which a recorded step cannot have
            value = torch.where(operation == number, low + amount * (high - low), value)

    def value_of(name: str, otherwise: float) -> Tensor:
        return torch.where(operation == NAMES.index(name), value, otherwise)

    levels = transform(
        levels,
        torch.deg2rad(value_of("rotate", 0)),
        (value_of("shear_x", 0), value_of("shear_y", 0)),
        (value_of("translate_x", 0), value_of("translate_y", 0)),
    )
    levels = blend(smooth(levels), levels, value_of("sharpness", 1))
    levels = blend(to_gray(levels).expand_as(levels), levels, value_of("color", 1))
    return levels_through_tables(levels, operation, value)


def transform(levels: Tensor, angle: Tensor, shear: tuple[Tensor, Tensor], translate: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate about the center, shear from the upper left corner, or translate: at most one of them an image.

    Args:
        levels: (n, c, h, w).
        angle: (n,) radians, counterclockwise.
        shear: (n,) each, by how many columns per row, and rows per column, what is sampled moves on.
        translate: (n,) each, by how much of width and height what is sampled moves on.

    Returns:
        Sampled bilinearly, gray where nothing was.
    """
    cos, sin = angle.cos(), angle.sin()
    (shear_x, shear_y), (translate_x, translate_y) = shear, translate
    # In coordinates from -1 to 1: output to input.
    rows = (
        torch.stack([cos, shear_x - sin, shear_x + 2 * translate_x], dim=1),
        torch.stack([shear_y + sin, cos, shear_y + 2 * translate_y], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(levels.shape), align_corners=False)
    return (F.grid_sample(levels - GRAY, grid, align_corners=False) + GRAY).round()


def smooth(levels: Tensor) -> Tensor:
    """Average each pixel but those on the edge with its eight neighbors, itself five times: Pillow's SMOOTH."""
    weights = torch.ones(1, 1, 3, 3, dtype=levels.dtype, device=levels.device)
    weights[:, :, 1, 1] = 5
    sums = F.conv2d(F.pad(levels, (1, 1, 1, 1)).flatten(0, 1).unsqueeze(1), weights).view_as(levels)
    height, width = levels.shape[2:]
    inside = torch.zeros(height, width, dtype=torch.bool, device=levels.device)
    inside[1:-1, 1:-1] = True
    return torch.where(inside, ((sums + 0.5) / 13).floor(), levels)


def to_gray(levels: Tensor) -> Tensor:
    """Return the luma of each pixel, (n, 1, h, w): ITU-R 601-2, as Pillow's mode L."""
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels.split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()


def blend(degenerate: Tensor, levels: Tensor, share: Tensor) -> Tensor:
    """Return ``degenerate`` with a share (n,) of the difference to ``levels``, in whole numbers, as Pillow's blend."""
    mixed = degenerate + share[:, None, None, None] * (levels - degenerate)
    return torch.where((share == 1)[:, None, None, None], levels, mixed.clamp(0, 255).floor())


def levels_through_tables(levels: Tensor, operation: Tensor, value: Tensor) -> Tensor:
    """Apply the operations that map a gray level to another, each image and channel through its own table.

    Arguments and result as for ``distort``, but ``value`` (n,) within the operation's range.
    """
    n, channels = levels.shape[:2]
    pixels = levels.flatten(2).long()
    level = torch.arange(256, dtype=levels.dtype, device=levels.device)
    counts = torch.zeros(n, channels, 256, dtype=levels.dtype, device=levels.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels, dtype=levels.dtype))
    amount = value[:, None, None]
    low, high = (edge.unsqueeze(2) for edge in pixels.aminmax(dim=2))
    mean = (to_gray(levels).mean(dim=(1, 2, 3)) + 0.5).floor()[:, None, None]
    step = 2 ** (8 - amount.floor().clamp(0, 8))
    tables = {
        "autocontrast": torch.where(high > low, ((level - low) * 255 / (high - low).clamp_min(1)).floor(), level),
        "equalize": _equalizing(counts, level),
        "brightness": (level * amount).floor(),
        "contrast": (mean + amount * (level - mean)).floor(),
        "posterize": (level / step).floor() * step,
        "solarize": torch.where(level < amount.floor(), level, 255 - level),
    }
    table = level.expand(n, channels, 256)
    for name, other in tables.items():
        table = torch.where((operation == NAMES.index(name))[:, None, None], other.clamp(0, 255), table)
    return table.gather(2, pixels).view_as(levels)


def _equalizing(counts: Tensor, level: Tensor) -> Tensor:
    """Return tables (n, c, 256) that spread the levels evenly, by their counts (n, c, 256), as Pillow does."""
    last = torch.where(counts > 0, level, -1).amax(dim=2, keepdim=True).long()
    total = counts.sum(dim=2, keepdim=True)
    step = ((total - counts.gather(2, last)) / 255).floor()
    before = counts.cumsum(dim=2) - counts
    spread = ((step / 2).floor() + before) / step.clamp_min(1)
    return torch.where(step == 0, level, spread.floor())


def cut_out(x: Tensor, cutout: Tensor) -> Tensor:
    """Blank a square of each view, of up to half its side, anywhere (Cutout, arXiv:1708.04552).

    Args:
        x: (n, c, h, w) in [-1, 1].
        cutout: as in ``StrongParams``.
    """
    height, width = x.shape[2:]
    side, row, column = cutout
    rows = (torch.arange(height, device=x.device) + 0.5 - row * height).abs() < side * height / 4
    columns = (torch.arange(width, device=x.device) + 0.5 - column * width).abs() < side * width / 4
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
