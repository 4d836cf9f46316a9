"""A data set on the device, with its split: which images are labeled, unlabeled and held out."""

import torch
from torch import Tensor

from mixmatch.data.dataset import ImageData
from mixmatch.data.split import Split


class DeviceDataset:
    """Images and labels on a device.

    Attributes:
        images: (n, h, w, c) uint8, the training images.
        labels: (n,) int64, the true classes, -1 where unknown.
        num_classes: C.
        split_labeled, split_unlabeled: int64 indices, of the split.
        labeled, unlabeled: int64 indices now: with pseudo-labels, images move from the latter to the former.
        train_labels: (len(labeled),) int64, the labels to train on.
        metric_labels: ``labels``, but -1 for labeled images: the accuracy of guesses is measured on the others.
        held_out: images and labels for evaluation, by name (``validation``, ``test``); empty sets are left out.
    """

    def __init__(self, data: ImageData, split: Split, device: torch.device) -> None:
        """Copy the images to ``device``."""
        self.num_classes = len(data.classes)
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.split_labeled, self.split_unlabeled, validation = (
            torch.tensor(indices, dtype=torch.int64, device=device)
            for indices in (split.labeled, split.unlabeled, split.validation)
        )
        self.metric_labels = self.labels.index_fill(0, self.split_labeled, -1)
        self.held_out: dict[str, tuple[Tensor, Tensor]] = {}
        if len(validation):
            self.held_out["validation"] = self.images[validation], self.labels[validation]
        if data.test_images is not None and data.test_labels is not None:
            self.held_out["test"] = data.test_images.to(device), data.test_labels.to(device)
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        self.set_pseudo_labels(nothing, nothing)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.images.device

    def class_frequencies(self) -> Tensor:
        """Return the class frequencies of the split's labeled images, (C,) float64 on the CPU, sum 1."""
        counts = self.labels[self.split_labeled].cpu().bincount(minlength=self.num_classes).double()
        return counts / counts.sum()

    def set_pseudo_labels(self, index: Tensor, labels: Tensor) -> None:
        """Move images from the unlabeled to the labeled set, in place of those moved before.

        If no image would remain unlabeled, all stay in the unlabeled set too.

        Args:
            index: (n,) int64, images that the split does not label.
            labels: (n,) int64, their pseudo-labels.
        """
        self.pseudo_index, self.pseudo_labels = index.to(self.device), labels.to(self.device)
        self.labeled = torch.cat([self.split_labeled, self.pseudo_index])
        self.train_labels = torch.cat([self.labels[self.split_labeled], self.pseudo_labels])
        remaining = ~torch.isin(self.split_unlabeled, self.pseudo_index)
        self.unlabeled = self.split_unlabeled[remaining] if remaining.any() else self.split_unlabeled

    def state(self) -> dict[str, Tensor]:
        """Return the pseudo-labels, for a checkpoint."""
        return {"index": self.pseudo_index, "labels": self.pseudo_labels}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the pseudo-labels.

        Raises:
            ValueError: if they do not fit these images.
        """
        index, labels = (state.get(name, torch.zeros(0, 0)) for name in ("index", "labels"))
        ranges = ((index, len(self.images)), (labels, self.num_classes))
        if index.shape != labels.shape or not all(
            values.dim() == 1 and values.dtype == torch.int64 and bool(((values >= 0) & (values < end)).all())
            for values, end in ranges
        ):
            raise ValueError("its pseudo-labels do not fit these images")
        self.set_pseudo_labels(index, labels)
