"""Weak augmentation: a random crop and flip of each image, for a whole batch in one gather on the device.

CIFAR's augmentation in the authors' code: a random horizontal flip, and a random crop of the original size after
padding by 4 pixels with reflection. Rotations and color jitter may follow.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
    angle: Tensor | None = None  # (n,) float32, radians counterclockwise
    jitter: Tensor | None = None  # (3, n) float32, factors of brightness, contrast and saturation


def sample_weak_params(
    n: int,
    flip: bool,
    padding: int,
    generator: Generator,
    rotate: bool = False,
    degrees: float = 0,
    color_jitter: float = 0,
) -> WeakParams:
    """Sample crop, flip, rotation and colors of n views, independently for each.

    Args:
        n: number of views.
        flip: flip with probability 1/2, else never.
        padding: pixels of reflection on each side of an image.
        generator: its device is the device of the result.
        rotate: rotate by 0, 90, 180 or 270 degrees.
        degrees: then rotate by up to so many degrees either way.
        color_jitter: factors of brightness, contrast and saturation are within so much of 1.
    """
    device = generator.device
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=device)
    hflip = torch.rand(n, generator=generator, device=device) < (0.5 if flip else 0.0)
    rotation = torch.randint(0, 4, (n,), generator=generator, device=device) if rotate else None
    angle = jitter = None
    if degrees:
        angle = (2 * torch.rand(n, generator=generator, device=device) - 1) * math.radians(degrees)
    if color_jitter:
        jitter = 1 + color_jitter * (2 * torch.rand((3, n), generator=generator, device=device) - 1)
    return WeakParams(top, left, hflip, rotation, angle, jitter)


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
    if params.rotation is not None:
        x = rot90(x, params.rotation)
    if params.angle is not None:
        x = rotate(x, params.angle)
    return x if params.jitter is None else adjust_colors(x, params.jitter)


def rot90(x: Tensor, k: Tensor) -> Tensor:
    """Rotate each of n square images counterclockwise by k * 90 degrees: (n, c, h, h), k (n,) int64 in 0 .. 3."""
    k = k[:, None, None, None]
    x = torch.where(k % 2 == 1, x.rot90(1, (2, 3)), x)
    return torch.where(k >= 2, x.rot90(2, (2, 3)), x).contiguous(memory_format=torch.channels_last)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate each of n images (n, c, h, h) counterclockwise by ``angle``, (n,) radians; corners are reflections."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrices = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for positions
        grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
        rotated = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return rotated.contiguous(memory_format=torch.channels_last)


def adjust_colors(x: Tensor, factors: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation of images (n, c, h, w) in [-1, 1] by ``factors``, (3, n).

    Each is clipped to the range, as in torchvision. Images that are not RGB have no saturation.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None]
    x = ((x + 1) / 2 * brightness).clamp(0, 1)
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    if x.shape[1] == 3:
        gray = _gray(x)
        x = (gray + saturation * (x - gray)).clamp(0, 1)
    return 2 * x - 1


def _gray(x: Tensor) -> Tensor:
    """Return the luma (ITU-R 601) of RGB images, the mean of other channels: (n, 1, h, w)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def _reflect(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
