"""Views: every image of a batch with its own mirror and its own crop, in one gather on the device.

CIFAR's augmentation in the authors' code: a random horizontal flip, and a random crop of the original size
after padding by 4 pixels of reflection.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Of strong views: two of these distortions an image, each up to so much either way.
OPERATIONS = {
    "rotate": math.radians(30),
    "shear_x": 0.3,
    "shear_y": 0.3,
    "zoom": 0.3,
    "brightness": 0.5,
    "contrast": 0.5,
}
OPERATIONS_PER_IMAGE = 2


def to_float(images: Tensor) -> Tensor:
    """Map uint8 images (..., h, w, c) to float32 (..., c, h, w) in [-1, 1], as the authors' code does."""
    return images.movedim(-1, -3).float() / 127.5 - 1


class Offsets(NamedTuple):
    """What sets each of n views apart."""

    top: Tensor  # (n,) int64 in 0 .. 2 * padding, with left the corner of the crop in the padded image
    left: Tensor  # (n,) int64
    mirror: Tensor  # (n,) bool, whether it is flipped left to right
    quarters: Tensor | None = None  # (n,) int64 in 0 .. 3, quarter turns after that


def draw_offsets(n: int, flip: bool, padding: int, generator: Generator, rotate: bool = False) -> Offsets:
    """Draw crop, flip and turn of n views, every one its own.

    Args:
        n: how many.
        flip: whether views are mirrored with probability 1/2.
        padding: pixels of reflection on each side of an image.
        generator: its device is where the draws are made.
        rotate: whether views are turned by 0 to 3 quarters.
    """
    device = generator.device
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=device)
    mirror = torch.rand(n, generator=generator, device=device) < (0.5 if flip else 0.0)
    quarters = torch.randint(0, 4, (n,), generator=generator, device=device) if rotate else None
    return Offsets(top, left, mirror, quarters)


def views(images: Tensor, index: Tensor, offsets: Offsets, padding: int) -> Tensor:
    """Cut one view of each of the images ``index``.

    Args:
        images: (count, h, w, c) uint8, the whole data set on its device.
        index: (n,) int64, which images.
        offsets: of each view.
        padding: pixels of reflection on each side (the edge itself is not repeated); below h and w.

    Returns:
        (n, c, h, w) float32 in [-1, 1], in channels_last memory order.
    """
    height, width = images.shape[1:3]
    rows = _reflect(torch.arange(height, device=images.device) + offsets.top[:, None] - padding, height)
    columns = _reflect(torch.arange(width, device=images.device) + offsets.left[:, None] - padding, width)
    columns = torch.where(offsets.mirror[:, None], columns.flip(1), columns)
    x = to_float(images[index[:, None, None], rows[:, :, None], columns[:, None, :]])
    return x if offsets.quarters is None else turn(x, offsets.quarters)


def turn(x: Tensor, quarters: Tensor) -> Tensor:
    """Turn each of n square views counterclockwise.

    Args:
        x: (n, c, h, h).
        quarters: (n,) int64 in 0 .. 3.
    """
    quarters = quarters[:, None, None, None]
    x = torch.where(quarters % 2 == 1, x.rot90(1, (2, 3)), x)
    return torch.where(quarters >= 2, x.rot90(2, (2, 3)), x).contiguous(memory_format=torch.channels_last)


def random_views(images: Tensor, index: Tensor, flip: bool, padding: int, generator: Generator) -> Tensor:
    """Cut one random view of each of the images ``index``. Arguments as for ``draw_offsets`` and ``views``."""
    return views(images, index, draw_offsets(len(index), flip, padding, generator), padding)


class Distortions(NamedTuple):
    """What sets each of n strong views apart: uniform numbers in [0, 1)."""

    rank: Tensor  # (n, 6), the operations of the smallest are applied
    amount: Tensor  # (n, 6), how far each goes
    cutout: Tensor  # (3, n, 1), side, row and column of the blanked square


def draw_distortions(n: int, generator: Generator) -> Distortions:
    """Draw the distortions of n strong views, every one its own, where ``generator`` is."""
    device = generator.device
    rank = torch.rand(n, len(OPERATIONS), generator=generator, device=device)
    amount = torch.rand(n, len(OPERATIONS), generator=generator, device=device)
    return Distortions(rank, amount, torch.rand(3, n, 1, generator=generator, device=device))


def strong_views(x: Tensor, distortions: Distortions) -> Tensor:
    """Distort views strongly, in the manner of RandAugment and Cutout.

    Args:
        x: (n, c, h, w) in [-1, 1], weak views.
        distortions: of each view.

    Returns:
        (n, c, h, w) in [-1, 1].
    """
    with torch.autocast(x.device.type, enabled=False):  # geometry in bfloat16 would be off by pixels
        return cut_out(distort(x, distortions), distortions)


def distort(
    x: Tensor,
    distortions: Distortions,
    operations: Mapping[str, float] = OPERATIONS,
    per_image: int = OPERATIONS_PER_IMAGE,
) -> Tensor:
    """Apply some of the operations to each view, as RandAugment does (arXiv:1909.13719), to a whole batch at once.

    The geometric operations of an image are one affine map, sampled with reflection at the edges.

    Args:
        x, distortions: as for ``strong_views``.
        operations: how far each of ``OPERATIONS`` goes, either way.
        per_image: how many of them an image gets.

    Returns:
        As ``strong_views``.
    """
    amounts = ((2 * distortions.amount - 1) * (distortions.rank.argsort(dim=1) < per_image)).unbind(dim=1)
    angle, shear_x, shear_y, zoom, brightness, contrast = (
        share * most for share, most in zip(amounts, operations.values(), strict=True)
    )
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    shear = torch.stack([torch.stack([1 + zero, shear_x], 1), torch.stack([shear_y, 1 + zero], 1)], 1)
    linear = rotation @ shear * (1 + zoom)[:, None, None]
    grid = F.affine_grid(torch.cat([linear, torch.zeros_like(linear[:, :, :1])], 2), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (x - mean) * (1 + contrast)[:, None, None, None] + brightness[:, None, None, None]).clamp(-1, 1)


def cut_out(x: Tensor, distortions: Distortions) -> Tensor:
    """Blank a square of each view, of up to half its side, anywhere (Cutout, arXiv:1708.04552).

    Arguments and result as for ``strong_views``.
    """
    height, width = x.shape[2:]
    side, row, column = distortions.cutout
    rows = (torch.arange(height, device=x.device) + 0.5 - row * height).abs() < side * height / 4
    columns = (torch.arange(width, device=x.device) + 0.5 - column * width).abs() < side * width / 4
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _reflect(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
