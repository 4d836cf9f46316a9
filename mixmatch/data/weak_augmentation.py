"""Views: every image of a batch with its own mirror and its own crop, in one gather on the device.

CIFAR's augmentation in the authors' code: a random horizontal flip, and a random crop of the original size
after padding by 4 pixels of reflection.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor


def to_float(images: Tensor) -> Tensor:
    """Map uint8 images (..., h, w, c) to float32 (..., c, h, w) in [-1, 1], as the authors' code does."""
    return images.movedim(-1, -3).float() / 127.5 - 1


class WeakParams(NamedTuple):
    """What sets each of n views apart."""

    top: Tensor  # (n,) int64 in 0 .. 2 * padding, with left the corner of the crop in the padded image
    left: Tensor  # (n,) int64
    mirror: Tensor  # (n,) bool, whether it is flipped left to right
    quarters: Tensor | None = None  # (n,) int64 in 0 .. 3, quarter turns after that


def sample_weak_params(n: int, flip: bool, padding: int, generator: Generator, rotate: bool = False) -> WeakParams:
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
    return WeakParams(top, left, mirror, quarters)


def views(images: Tensor, index: Tensor, offsets: WeakParams, padding: int) -> Tensor:
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
    """Cut one random view of each of the images ``index``. Arguments as for ``sample_weak_params`` and ``views``."""
    return views(images, index, sample_weak_params(len(index), flip, padding, generator), padding)


def _reflect(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
