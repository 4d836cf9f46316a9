"""Weak augmentation: a random crop and flip of each image, for a whole batch in one gather on the device.

CIFAR's augmentation in the authors' code: a random horizontal flip, and a random crop of the original size after
padding by 4 pixels with reflection.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor


def to_float(images: Tensor) -> Tensor:
    """Map uint8 images (..., h, w, c) to float32 (..., c, h, w) in [-1, 1], as the authors' code does."""
    return images.movedim(-1, -3).float() / 127.5 - 1


class WeakParams(NamedTuple):
    """The random parameters of n views."""

    top: Tensor  # (n,) int64 in 0 .. 2 * padding, with ``left`` the corner of the crop in the padded image
    left: Tensor  # (n,) int64
    hflip: Tensor  # (n,) bool
    rotation: Tensor | None = None  # (n,) int64 in 0 .. 3, quarter turns after crop and flip


def sample_weak_params(n: int, flip: bool, padding: int, generator: Generator, rotate: bool = False) -> WeakParams:
    """Sample crop, flip and rotation of n views, independently for each.

    Args:
        n: number of views.
        flip: flip with probability 1/2, else never.
        padding: pixels of reflection on each side of an image.
        generator: its device is the device of the result.
        rotate: rotate by 0, 90, 180 or 270 degrees.
    """
    device = generator.device
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=device)
    hflip = torch.rand(n, generator=generator, device=device) < (0.5 if flip else 0.0)
    rotation = torch.randint(0, 4, (n,), generator=generator, device=device) if rotate else None
    return WeakParams(top, left, hflip, rotation)


def weak_augment(images: Tensor, index: Tensor, params: WeakParams, padding: int) -> Tensor:
    """Return one weak view of each of the images ``index``.

    Args:
        images: (count, h, w, c) uint8, the whole data set.
        index: (n,) int64.
        params: of each view.
        padding: pixels of reflection on each side (the edge itself is not repeated); less than h and w.

    Returns:
        (n, c, h, w) float32 in [-1, 1], channels_last.
    """
    height, width = images.shape[1:3]
    rows = _reflect(torch.arange(height, device=images.device) + params.top[:, None] - padding, height)
    columns = _reflect(torch.arange(width, device=images.device) + params.left[:, None] - padding, width)
    columns = torch.where(params.hflip[:, None], columns.flip(1), columns)
    x = to_float(images[index[:, None, None], rows[:, :, None], columns[:, None, :]])
    return x if params.rotation is None else rot90(x, params.rotation)


def rot90(x: Tensor, k: Tensor) -> Tensor:
    """Rotate each of n square images counterclockwise by k * 90 degrees: (n, c, h, h), k (n,) int64 in 0 .. 3."""
    k = k[:, None, None, None]
    x = torch.where(k % 2 == 1, x.rot90(1, (2, 3)), x)
    return torch.where(k >= 2, x.rot90(2, (2, 3)), x).contiguous(memory_format=torch.channels_last)


def _reflect(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
