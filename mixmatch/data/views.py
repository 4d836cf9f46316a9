"""Views: every image of a batch with its own mirror and its own crop, in one gather on the device.

CIFAR's augmentation in the authors' code: a random horizontal flip, and a random crop of the original size
after padding by 4 pixels of reflection.
"""

import math
from collections.abc import Mapping

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


def views(images: Tensor, index: Tensor, top: Tensor, left: Tensor, mirror: Tensor, padding: int) -> Tensor:
    """Cut one view of each of the images ``index``.

    Args:
        images: (count, h, w, c) uint8, the whole data set on its device.
        index: (n,) int64, which images.
        top, left: (n,) int64 in 0 .. 2 * padding, the corner of each crop in the padded image.
        mirror: (n,) bool, which views are flipped left to right.
        padding: pixels of reflection on each side (the edge itself is not repeated); below h and w.

    Returns:
        (n, c, h, w) float32 in [-1, 1], in channels_last memory order.
    """
    height, width = images.shape[1:3]
    rows = _reflect(torch.arange(height, device=images.device) + top[:, None] - padding, height)
    columns = _reflect(torch.arange(width, device=images.device) + left[:, None] - padding, width)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    return to_float(images[index[:, None, None], rows[:, :, None], columns[:, None, :]])


def random_views(images: Tensor, index: Tensor, flip: bool, padding: int, generator: Generator) -> Tensor:
    """Cut one random view of each of the images ``index``, every one with draws of its own.

    Args:
        images, index, padding: as for ``views``.
        flip: whether views are mirrored with probability 1/2.
        generator: on the device of ``images``.

    Returns:
        (n, c, h, w) float32 in [-1, 1].
    """
    n, device = len(index), images.device
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=device)
    mirror = torch.rand(n, generator=generator, device=device) < (0.5 if flip else 0.0)
    return views(images, index, top, left, mirror, padding)


def random_strong_views(x: Tensor, generator: Generator) -> Tensor:
    """Distort views strongly, each by draws of its own, in the manner of RandAugment and Cutout.

    Args:
        x: (n, c, h, w) in [-1, 1], weak views.
        generator: on the device of ``x``.

    Returns:
        (n, c, h, w) in [-1, 1].
    """
    return random_cutout(random_distortions(x, generator), generator)


def random_distortions(
    x: Tensor,
    generator: Generator,
    operations: Mapping[str, float] = OPERATIONS,
    per_image: int = OPERATIONS_PER_IMAGE,
) -> Tensor:
    """Apply random operations to each view, as RandAugment does (arXiv:1909.13719), to a whole batch at once.

    The geometric operations of an image are one affine map, sampled with reflection at the edges.

    Args:
        x, generator: as for ``random_strong_views``.
        operations: how far each of ``OPERATIONS`` goes, either way.
        per_image: how many of them an image gets.

    Returns:
        As ``random_strong_views``.
    """
    n = len(x)
    rank = torch.rand(n, len(operations), generator=generator, device=x.device).argsort(dim=1)
    amount = 2 * torch.rand(n, len(operations), generator=generator, device=x.device) - 1
    amounts = (amount * (rank < per_image)).unbind(dim=1)
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


def random_cutout(x: Tensor, generator: Generator) -> Tensor:
    """Blank a square of each view, of up to half its side, anywhere (Cutout, arXiv:1708.04552).

    Arguments and result as for ``random_strong_views``.
    """
    n, _, height, width = x.shape
    side, row, column = torch.rand(3, n, 1, generator=generator, device=x.device)
    rows = (torch.arange(height, device=x.device) + 0.5 - row * height).abs() < side * height / 4
    columns = (torch.arange(width, device=x.device) + 0.5 - column * width).abs() < side * width / 4
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _reflect(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
