"""Which images a step trains on: a function of the seed and the step, so that a resumed run continues exactly.

Shuffles come from NumPy's legacy RandomState, whose streams are frozen: the same on every machine and version.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixmatch.data.device_dataset import DeviceDataset

# Indices are computed for many steps at once and kept on the device, so that the host rarely copies.
STEPS_PER_REFILL = 256
FIRST_REFILL = 225  # a step at which nothing is logged or evaluated by default
LABELED_STREAM, UNLABELED_STREAM = 0, 1


class BatchIndices(NamedTuple):
    """The images of a step's batch."""

    x_index: Tensor  # (B,) int64, labeled images
    x_labels: Tensor  # (B,) int64, their labels
    u_index: Tensor  # (M,) int64, unlabeled images


class Sampler:
    """Maps steps to batches: each image once before any image again, whatever the batch size."""

    def __init__(self, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Set the seed, and which part of each batch this process gets."""
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._cache: dict[int, tuple[tuple[int, int, int], Tensor]] = {}

    def batch(self, dataset: DeviceDataset, step: int, num_labeled: int, num_unlabeled: int) -> BatchIndices:
        """Return this process's part of the batch of step ``step``.

        Args:
            dataset: the images, and which of them are labeled now.
            step: completed steps.
            num_labeled, num_unlabeled: B and M of all processes together, multiples of their number; M may be 0.
        """
        x = self._positions(len(dataset.labeled), LABELED_STREAM, step, num_labeled, dataset.device)
        u = x[:0]
        if num_unlabeled:
            positions = self._positions(len(dataset.unlabeled), UNLABELED_STREAM, step, num_unlabeled, dataset.device)
            u = dataset.unlabeled[positions]
        return BatchIndices(dataset.labeled[x], dataset.train_labels[x], u)

    def _positions(self, count: int, stream: int, step: int, size: int, device: torch.device) -> Tensor:
        """Return this process's part of ``size`` positions in 0 .. count - 1."""
        first = max(0, step - (step - FIRST_REFILL) % STEPS_PER_REFILL)
        key = first, count, size
        if stream not in self._cache or self._cache[stream][0] != key:
            positions = shuffled_stream(count, first * size, (first + STEPS_PER_REFILL) * size, self.seed, stream)
            parts = torch.from_numpy(positions).view(STEPS_PER_REFILL, self.world_size, size // self.world_size)
            self._cache[stream] = key, parts[:, self.rank].to(device)
        return self._cache[stream][1][step - first]


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


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the 64-bit seed of all random numbers that a step samples on its device."""
    return int(np.random.SeedSequence([seed, step] + [rank] * (rank > 0)).generate_state(1, np.uint64)[0])
