"""Brings the images of each step to the device."""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mixmatch.data.device_dataset import DeviceDataset
from mixmatch.data.sampler import BatchIndices, Sampler
from mixmatch.data.stored_images import READ_AHEAD, read_ahead


class _ReadBatch(NamedTuple):
    indices: BatchIndices
    images: Tensor | None  # None: they are on the device


class BatchReader:
    """Holds the images of a step on the device, always at the same place, where a recorded step reads them.

    Images that are kept on the device stay where they are. Others are read ahead in a thread: the batches of a run are
    known beforehand.

    Attributes:
        indices: the images of the step, on the device.
        images: (n, h, w, c) uint8, all images, or those of the step.
        x_index, u_index: (B,) and (M,) int64, the labeled and unlabeled images of the step in ``images``.
    """

    def __init__(self, dataset: DeviceDataset, sampler: Sampler, num_labeled: int, num_unlabeled: int) -> None:
        """Reserve the memory; arguments as for ``Sampler.batch``."""
        self._dataset, self._sampler, self._counts = dataset, sampler, (num_labeled, num_unlabeled)
        self._pinned = dataset.device.type == "cuda" and dataset.place != "device"
        self._ahead: Iterator[_ReadBatch] = iter(())
        self._copies: deque[torch.cuda.Event] = deque()
        self._next = self._loaded = (-1, -1)  # step and version of the data set
        batch = self._read(0)
        self.indices = BatchIndices(*(index.to(dataset.device, copy=True) for index in batch.indices))
        if isinstance(dataset.images, Tensor) and dataset.place == "device":
            self.images, self.x_index, self.u_index = dataset.images, self.indices.x_index, self.indices.u_index
        else:
            assert batch.images is not None
            self.images = batch.images.to(dataset.device, copy=True)
            places = torch.arange(len(self.images), device=dataset.device)
            self.x_index, self.u_index = places.split([len(self.indices.x_index), len(self.indices.u_index)])

    def load(self, step: int) -> None:
        """Bring the images of step ``step`` to their place.

        Raises:
            UserError: if they cannot be read.
        """
        now = step, self._dataset.version
        if self._dataset.place == "device":
            batch = self._read(step)
        elif now == self._loaded:
            return
        else:
            if now != self._next:
                self._ahead = read_ahead(self._read, itertools.count(step))
            batch = next(self._ahead)
            self._next, self._loaded = (step + 1, now[1]), now
        for place, index in zip(self.indices, batch.indices, strict=True):
            place.copy_(index, non_blocking=True)
        if batch.images is not None:
            self.images.copy_(batch.images, non_blocking=True)
        if self._pinned:  # a batch stays in pinned memory until it is copied: let the host not get far ahead
            self._copies.append(torch.cuda.Event())
            self._copies[-1].record()
            if len(self._copies) > READ_AHEAD:
                self._copies.popleft().synchronize()

    def _read(self, step: int) -> _ReadBatch:
        indices, images = self._sampler.batch(self._dataset, step, *self._counts), None
        if self._dataset.place != "device":
            images = self._dataset.images[torch.cat([indices.x_index, indices.u_index])]
        if images is not None and self._pinned:
            return _ReadBatch(BatchIndices(*(index.pin_memory() for index in indices)), images.pin_memory())
        return _ReadBatch(indices, images)
