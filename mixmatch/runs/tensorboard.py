"""Curves, pictures and settings of a run in TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

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
}
# Groups of curves; all others, such as losses and schedules, are in the group ``train``.
GROUPS = {
    **dict.fromkeys(["confidence", "guess_accuracy", "max_class_frequency", "effective_num_classes"], "guesses"),
    **dict.fromkeys(["validation_accuracy", "test_accuracy"], "accuracy"),
}


class TensorBoardWriter:
    """Writes the TensorBoard events of one session of a run. All methods raise UserError if writing fails."""

    def __init__(self, path: Path, step: int) -> None:
        """Open a new event file.

        Args:
            path: the run directory.
            step: completed steps: TensorBoard hides what an earlier session wrote after it.
        """
        self.path = path
        self.is_new_run = not any(path.glob("events.out.tfevents.*"))
        with explain_os_errors(path):
            self._writer = SummaryWriter(str(path), purge_step=step + 1 if step else 0)
        self._file_writer: Any = self._writer.file_writer  # torch declares it as None

    def start(self, settings: Mapping[str, Any], descriptions: Mapping[str, str]) -> None:
        """Add the settings to the HParams page, and the descriptions of the method's curves, by name, to the texts."""
        if not self.is_new_run:
            return
        plain = (bool, int, float)
        values = {key: value if isinstance(value, plain) else str(value) for key, value in settings.items()}
        rows = [f"| {name} | {text} |" for name, text in {**DESCRIPTIONS, **descriptions}.items()]
        with explain_os_errors(self.path):
            # Not add_hparams, which makes a run of its own for them.
            self._file_writer.add_summary(hparams(values, {})[1])
            self._writer.add_text("curves", "\n".join(["| curve | meaning |", "| --- | --- |", *rows]), 0)

    def finish(self) -> None:
        """Mark the run as finished on the HParams page."""
        with explain_os_errors(self.path):
            self._file_writer.add_summary(hparams({}, {})[2])

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Add a point to the curve of each number in ``values``."""
        with explain_os_errors(self.path):
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{GROUPS.get(name, 'train')}/{name}", value, step)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """Add an image."""
        with explain_os_errors(self.path):
            self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def flush(self) -> None:
        """Write all events to the file."""
        with explain_os_errors(self.path):
            self._writer.flush()

    def close(self) -> None:
        """Write all events to the file and close it."""
        with explain_os_errors(self.path):
            self._writer.close()
