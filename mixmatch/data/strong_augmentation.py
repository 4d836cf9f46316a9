"""Strong augmentation: FixMatch's RandAugment and Cutout, for a whole batch on the device.

Its 14 operations and their ranges are those of the paper's table 12 (arXiv:2001.07685). They work on integer
pixel values, 0 to 255, as Pillow's do. Each image gets some, one after the other. Every operation is applied to
the whole batch in four stages (affine map, sharpness, color, lookup table), each of which changes only the images with
that operation.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# The range of each operation's value.
OPERATIONS = {
    "identity": (0, 0),
    "autocontrast": (0, 0),
    "equalize": (0, 0),
    "brightness": (0.05, 0.95),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "sharpness": (0.05, 0.95),
    "posterize": (4, 9),  # bits kept, rounded down: 4 to 8
    "solarize": (0, 256),  # pixels from this value on are inverted
    "rotate": (-30, 30),  # degrees
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "translate_x": (-0.3, 0.3),  # of the side
    "translate_y": (-0.3, 0.3),
}
NAMES = list(OPERATIONS)
GRAY = 127.5  # fills what is outside the image, and Cutout's square


class StrongParams(NamedTuple):
    """The random parameters of n strong views."""

    operation: Tensor  # (operations, n) int64, index into OPERATIONS
    magnitude: Tensor  # (operations, n), position in the operation's range, in [0, 1)
    cutout: Tensor  # (3, n, 1), side (1: half the image's), row and column of the blanked square, in [0, 1]


def sample_strong_params(n: int, num_operations: int, generator: Generator) -> StrongParams:
    """Sample the parameters of n strong views, independently for each, on the device of ``generator``."""
    device = generator.device
    operation = torch.randint(0, len(OPERATIONS), (num_operations, n), generator=generator, device=device)
    magnitude = torch.rand(num_operations, n, generator=generator, device=device)
    return StrongParams(operation, magnitude, torch.rand(3, n, 1, generator=generator, device=device))


def strong_augment(x: Tensor, params: StrongParams) -> Tensor:
    """Apply RandAugment, then Cutout.

    Args:
        x: (n, c, h, w) in [-1, 1], weak views; c is 3, or 1 for gray images.
        params: of each view.

    Returns:
        (n, c, h, w) in [-1, 1].
    """
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for pixel values and positions
        levels = (x * 127.5 + 127.5).round()
        for operation, magnitude in zip(params.operation, params.magnitude, strict=True):
            levels = apply_operation(levels, operation, magnitude)
        return cutout(levels / 127.5 - 1, params.cutout)


def apply_operation(levels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        levels: (n, c, h, w) integers 0 to 255.
        operation: (n,) indices into ``OPERATIONS``.
        magnitude: (n,) position in the operation's range, in [0, 1).

    Returns:
        (n, c, h, w) integers 0 to 255.
    """
    magnitude = magnitude.to(levels.dtype)
    value = torch.zeros_like(magnitude)
    for number, (low, high) in enumerate(OPERATIONS.values()):
        if high > low:  # a tensor of ranges would be copied to the device, which a CUDA graph cannot do
            value = torch.where(operation == number, low + magnitude * (high - low), value)

    def value_of(name: str, otherwise: float) -> Tensor:
        return torch.where(operation == NAMES.index(name), value, otherwise)

    levels = affine(
        levels,
        torch.deg2rad(value_of("rotate", 0)),
        (value_of("shear_x", 0), value_of("shear_y", 0)),
        (value_of("translate_x", 0), value_of("translate_y", 0)),
    )
    levels = blend(smooth(levels), levels, value_of("sharpness", 1))
    levels = blend(to_gray(levels).expand_as(levels), levels, value_of("color", 1))
    return apply_lookup_tables(levels, operation, value)


def affine(levels: Tensor, angle: Tensor, shear: tuple[Tensor, Tensor], translate: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate about the center, shear from the upper left corner, or translate: at most one of them for each image.

    Args:
        levels: (n, c, h, w).
        angle: (n,) radians, counterclockwise.
        shear: (n,) each, columns per row and rows per column by which the sampled position moves.
        translate: (n,) each, fractions of width and height by which the sampled position moves.

    Returns:
        (n, c, h, w), bilinear, gray outside the image.
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
    """Average each inner pixel, with weight 5, with its eight neighbors: Pillow's SMOOTH."""
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
    red, green, blue = levels[:, :1], levels[:, 1:2], levels[:, 2:]
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()


def blend(degenerate: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """Return degenerate + factor * (levels - degenerate), factor (n,), in integers, as Pillow's ImageEnhance."""
    mixed = degenerate + factor[:, None, None, None] * (levels - degenerate)
    return torch.where((factor == 1)[:, None, None, None], levels, mixed.clamp(0, 255).floor())


def apply_lookup_tables(levels: Tensor, operation: Tensor, value: Tensor) -> Tensor:
    """Apply the operations that map a pixel value to another, with a lookup table for each image and channel.

    Arguments and result as for ``apply_operation``, but ``value`` (n,) in the operation's range.
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
        "equalize": _equalize_table(counts, level),
        "brightness": (level * amount).floor(),
        "contrast": (mean + amount * (level - mean)).floor(),
        "posterize": (level / step).floor() * step,
        "solarize": torch.where(level < amount.floor(), level, 255 - level),
    }
    table = level.expand(n, channels, 256)
    for name, other in tables.items():
        table = torch.where((operation == NAMES.index(name))[:, None, None], other.clamp(0, 255), table)
    return table.gather(2, pixels).view_as(levels)


def _equalize_table(counts: Tensor, level: Tensor) -> Tensor:
    """Return lookup tables (n, c, 256) that equalize histograms (n, c, 256), as Pillow does."""
    last = torch.where(counts > 0, level, -1).amax(dim=2, keepdim=True).long()
    total = counts.sum(dim=2, keepdim=True)
    step = ((total - counts.gather(2, last)) / 255).floor()
    before = counts.cumsum(dim=2) - counts
    spread = ((step / 2).floor() + before) / step.clamp_min(1)
    return torch.where(step == 0, level, spread.floor())


def cutout(x: Tensor, params: Tensor) -> Tensor:
    """Set a square of each view to gray, its side a fraction of half the image's (Cutout, arXiv:1708.04552).

    Args:
        x: (n, c, h, w) in [-1, 1].
        params: (3, n, 1), as in ``StrongParams``.
    """
    height, width = x.shape[2:]
    side, row, column = params
    rows = (torch.arange(height, device=x.device) + 0.5 - row * height).abs() < side * height / 4
    columns = (torch.arange(width, device=x.device) + 0.5 - column * width).abs() < side * width / 4
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
