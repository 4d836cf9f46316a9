"""Curves and pictures of a run in TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from mixmatch.files import explain_os_errors

# Shown on TensorBoard's page of texts; methods add those of their own curves.
DESCRIPTIONS = {
    "loss": "the training loss, averaged over the steps since the previous point",
    "lr": "learning rate",
    "steps_per_second": "training steps per second, without evaluations and checkpoints",
    "confidence": "largest probability of the guessed labels, averaged",
    "guess_accuracy": "accuracy of the guessed labels in percent, for unlabeled images with a known class",
    "max_class_frequency": "share of the most frequent class among the guessed labels",
    "effective_num_classes": "exp(entropy) of the classes of the guessed labels",
    "validation_accuracy": "accuracy of the EMA network on the validation images in percent",
    "test_accuracy": "accuracy of the EMA network on the test images in percent",
    "validation_balanced_accuracy": "mean recall of the classes on the validation images in percent",
    "test_balanced_accuracy": "mean recall of the classes on the test images in percent",
    "labeled_accuracy": "accuracy of the EMA network on labeled images (at most 1,000), not augmented, in percent",
    "validation_loss": "cross-entropy of the EMA network on the validation images",
    "test_loss": "cross-entropy of the EMA network on the test images",
    "labeled_images": "images that are trained on as labeled ones, pseudo-labeled ones included",
    "unlabeled_images": "images that are trained on as unlabeled ones",
}
# Groups of curves; all others, such as training losses and schedules, are in the group ``train``.
GROUPS = {
    **dict.fromkeys(["confidence", "guess_accuracy", "max_class_frequency", "effective_num_classes"], "guesses"),
    **dict.fromkeys(["validation_accuracy", "test_accuracy", "labeled_accuracy"], "accuracy"),
    **dict.fromkeys(["validation_balanced_accuracy", "test_balanced_accuracy"], "accuracy"),
    **dict.fromkeys(["validation_loss", "test_loss"], "loss"),
    **dict.fromkeys(["labeled_images", "unlabeled_images"], "images"),
}


class TensorBoardWriter:
    """Writes the TensorBoard events of one session of a run. All methods raise OSError if writing fails."""

    def __init__(self, path: Path, step: int) -> None:
        """Open a new event file.

        Args:
            path: the run directory.
            step: completed steps: TensorBoard hides what an earlier session wrote after it.

        Raises:
            UserError: if it cannot be written.
        """
        self.is_new_run = not any(path.glob("events.out.tfevents.*"))
        with explain_os_errors(path):
            self._writer = SummaryWriter(str(path), purge_step=step + 1 if step else 0)

    def start(self, descriptions: Mapping[str, str]) -> None:
        """Show the descriptions of the method's curves, by name, as a text."""
        if self.is_new_run:
            rows = [f"| {name} | {text} |" for name, text in {**DESCRIPTIONS, **descriptions}.items()]
            self._writer.add_text("curves", "\n".join(["| curve | meaning |", "| --- | --- |", *rows]), 0)

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Add a point to the curve of each number in ``values``."""
        for name, value in values.items():
            if isinstance(value, int | float):
                tag = name if "/" in name else f"{GROUPS.get(name, 'train')}/{name}"
                self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """Add an image."""
        self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def flush(self) -> None:
        """Write all events to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Write all events to the file and close it."""
        self._writer.close()
