"""Views: every image of a batch with its own mirror and its own crop, in one gather on the device.

CIFAR's augmentation in the authors' code: a random horizontal flip, and a random crop of the original size
after padding by 4 pixels of reflection.
"""

import torch
from torch import Generator, Tensor


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


def _reflect(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
