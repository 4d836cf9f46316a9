"""Which images a step trains on: a function of the seed and the step, so that a resumed run continues exactly.

Shuffles come from NumPy's legacy RandomState, whose streams are frozen: the same on every machine and version.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixmatch.data.device_dataset import DeviceDataset

# Indices are computed for many steps at once and kept where those of the data set are, so that the host rarely copies.
STEPS_PER_REFILL = 256
LABELED_STREAM, UNLABELED_STREAM, CLASS_STREAM, FIRST_STREAM_OF_CLASS = 0, 1, 2, 3


class BatchIndices(NamedTuple):
    """The images of a step's batch."""

    x_index: Tensor  # (B,) int64, labeled images
    x_labels: Tensor  # (B,) int64, their labels
    u_index: Tensor  # (M,) int64, unlabeled images


class Sampler:
    """Maps steps to batches: each image once before any image again, whatever the batch size.

    If balanced, each class once before any class again, and each labeled image of a class once before any of it again.
    """

    def __init__(self, seed: int, rank: int = 0, world_size: int = 1, balanced: bool = False) -> None:
        """Set the seed, which part of each batch this process gets, and whether labeled images are balanced."""
        self.seed, self.rank, self.world_size, self.balanced = seed, rank, world_size, balanced
        self._cache: dict[int, tuple[tuple[int, int, int], Tensor | None, Tensor]] = {}

    def batch(self, dataset: DeviceDataset, step: int, num_labeled: int, num_unlabeled: int) -> BatchIndices:
        """Return this process's part of the batch of step ``step``.

        Args:
            dataset: the images, and which of them are labeled now.
            step: completed steps.
            num_labeled, num_unlabeled: B and M of all processes together, multiples of their number; M may be 0.
        """
        device, labels = dataset.labeled.device, dataset.train_labels if self.balanced else None
        x = self._positions(len(dataset.labeled), LABELED_STREAM, step, num_labeled, device, labels)
        u = x[:0]
        if num_unlabeled:
            positions = self._positions(len(dataset.unlabeled), UNLABELED_STREAM, step, num_unlabeled, device)
            u = dataset.unlabeled[positions]
        return BatchIndices(dataset.labeled[x], dataset.train_labels[x], u)

    def _positions(
        self, count: int, stream: int, step: int, size: int, device: torch.device, labels: Tensor | None = None
    ) -> Tensor:
        """Return this process's part of ``size`` positions in 0 .. count - 1, balanced by ``labels`` if given."""
        first = step - step % STEPS_PER_REFILL
        key = first, count, size
        # New pseudo-labels are a new tensor.
        if stream not in self._cache or self._cache[stream][0] != key or self._cache[stream][1] is not labels:
            start, stop = first * size, (first + STEPS_PER_REFILL) * size
            if labels is None:
                positions = shuffled_stream(count, start, stop, self.seed, stream)
            else:
                positions = balanced_stream(labels.cpu().numpy(), start, stop, self.seed)
            parts = torch.from_numpy(positions).view(STEPS_PER_REFILL, self.world_size, size // self.world_size)
            self._cache[stream] = key, labels, parts[:, self.rank].to(device)
        return self._cache[stream][2][step - first]


def shuffled_stream(count: int, start: int, stop: int, seed: int, stream: int) -> np.ndarray:
    """Return entries ``start`` .. ``stop`` - 1 of an endless sequence of shuffles of 0 .. count - 1.

    Args:
        count: number of images, at least 1.
        start, stop: positions in the sequence, 0 <= start <= stop.
        seed: of the run.
        stream: distinguishes sequences of one seed.

    Returns:
        (stop - start,) int64.
    """
    epochs = range(start // count, -(-stop // count))
    shuffles = [np.random.RandomState([seed, stream, epoch]).permutation(count) for epoch in epochs]
    offset = epochs.start * count
    return np.concatenate([np.empty(0, np.int64), *shuffles])[start - offset : stop - offset]


def balanced_stream(labels: np.ndarray, start: int, stop: int, seed: int) -> np.ndarray:
    """Return entries ``start`` .. ``stop`` - 1 of an endless sequence in which all classes are equally frequent.

    It consists of shuffles of the classes; the images of a class follow each other in shuffles of theirs.

    Args:
        labels: (n,) int64, n at least 1; classes without images do not occur.
        start, stop, seed: as in ``shuffled_stream``.

    Returns:
        (stop - start,) int64 positions in ``labels``.
    """
    classes = np.unique(labels)
    count = len(classes)
    first, last = start // count, -(-stop // count)
    order = _block_stream(count, first * count, last * count, seed, CLASS_STREAM)
    images = np.empty((last - first, count), dtype=np.int64)
    for column, label in enumerate(classes.tolist()):
        members = np.flatnonzero(labels == label)
        images[:, column] = members[_block_stream(len(members), first, last, seed, FIRST_STREAM_OF_CLASS + label)]
    entries: np.ndarray = images[np.arange(len(order)) // count, order]
    return entries[start - first * count : stop - first * count]


def _block_stream(count: int, start: int, stop: int, seed: int, stream: int) -> np.ndarray:
    """Return what ``shuffled_stream`` describes, other shuffles, faster where ``count`` is small.

    To make a RandomState takes longer than a short shuffle: one makes the shuffles of about 4,096 entries.
    """
    rows = max(1, 4096 // count)
    size = rows * count
    blocks = range(start // size, -(-stop // size))
    states = (np.random.RandomState([seed, stream, block]) for block in blocks)
    shuffles = [state.random_sample((rows, count)).argsort(axis=1, kind="stable").ravel() for state in states]
    return np.concatenate([np.empty(0, np.int64), *shuffles])[start - blocks.start * size : stop - blocks.start * size]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the 64-bit seed of all random numbers that a step samples on its device."""
    return int(np.random.SeedSequence([seed, step] + [rank] * (rank > 0)).generate_state(1, np.uint64)[0])
