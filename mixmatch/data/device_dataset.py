"""A data set for training, with its split: which images are labeled, unlabeled and held out."""

import math

import torch
from torch import Tensor

from mixmatch.data.dataset import ImageData
from mixmatch.data.memory import choose_place
from mixmatch.data.split import Split
from mixmatch.data.stored_images import Images, StoredImages, select, to_memory


class DeviceDataset:
    """Images on a device, in memory or on disk, and labels on the device.

    Indices of images are where the images are; of those on disk, in memory.

    Attributes:
        device: that trains.
        place: where the images are.
        images: (n, h, w, c) uint8, the training images.
        labels: (n,) int64, the true classes, -1 where unknown, on the device.
        num_classes: C.
        split_labeled, split_unlabeled: int64 indices, of the split.
        labeled, unlabeled: int64 indices now: with pseudo-labels, images move from the latter to the former.
        train_labels: (len(labeled),) int64, the labels to train on, where the indices are.
        metric_labels: ``labels``, but -1 for labeled images: the accuracy of guesses is measured on the others.
        held_out: images and labels for evaluation, by name (``validation``, ``test``); empty sets are left out.
        version: changes with the pseudo-labels.
    """

    def __init__(
        self, data: ImageData, split: Split, device: torch.device, keep_on: str = "auto", num_processes: int = 1
    ) -> None:
        """Bring the images to where they are kept.

        Args:
            data: the images.
            split: which of them are for what.
            device: that trains.
            keep_on: ``data.keep_on``.
            num_processes: that train on this machine.

        Raises:
            UserError: if there is no room for the images.
        """
        self.device, self.num_classes, self.version = device, len(data.classes), 0
        num_bytes = sum(math.prod(images.shape) for images in (data.images, data.test_images) if images is not None)
        stored = isinstance(data.images, StoredImages)
        self.place = choose_place(keep_on, num_bytes, device, stored, num_processes)

        def keep(images: Images) -> Images:
            if self.place == "disk":
                return images
            return to_memory(images, device if self.place == "device" else torch.device("cpu"))

        self.images, self.labels = keep(data.images), data.labels.to(device)
        self.split_labeled, self.split_unlabeled = (
            torch.tensor(indices, dtype=torch.int64, device=self.images.device)
            for indices in (split.labeled, split.unlabeled)
        )
        self.metric_labels = self.labels.index_fill(0, self.split_labeled.to(device), -1)
        self.held_out: dict[str, tuple[Images, Tensor]] = {}
        if split.validation:
            self.held_out["validation"] = select(self.images, split.validation), self.labels[split.validation]
        if data.test_images is not None and data.test_labels is not None:
            self.held_out["test"] = keep(data.test_images), data.test_labels.to(device)
        nothing = torch.empty(0, dtype=torch.int64)
        self.set_pseudo_labels(nothing, nothing)

    def class_frequencies(self) -> Tensor:
        """Return the class frequencies of the split's labeled images, (C,) float64 on the CPU, sum 1."""
        counts = self.labels.cpu()[self.split_labeled.cpu()].bincount(minlength=self.num_classes).double()
        return counts / counts.sum()

    def set_pseudo_labels(self, index: Tensor, labels: Tensor) -> None:
        """Move images from the unlabeled to the labeled set, in place of those moved before.

        If no image would remain without a label, all stay in the unlabeled set too.

        Args:
            index: (n,) int64, images that the split does not label.
            labels: (n,) int64, their pseudo-labels.
        """
        self.version += 1
        self.pseudo_index, self.pseudo_labels = index.to(self.images.device), labels.to(self.images.device)
        self.labeled = torch.cat([self.split_labeled, self.pseudo_index])
        known = self.labels.to(self.images.device)[self.split_labeled]
        self.train_labels = torch.cat([known, self.pseudo_labels])
        remaining = ~torch.isin(self.split_unlabeled, self.pseudo_index)
        without_label = ~torch.isin(self.split_unlabeled, self.labeled)
        self.unlabeled = self.split_unlabeled[remaining] if without_label.any() else self.split_unlabeled
