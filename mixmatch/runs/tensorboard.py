"""What TensorBoard shows of a run: curves and pictures, under the names that metrics.jsonl uses."""

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams

from mixmatch.errors import single_line
from mixmatch.files import explain_os_errors, open_in
from mixmatch.runs.plots import describe_guess, draw_confusion, draw_grid, to_png

# What TensorBoard says beside the pictures and curves; methods add those of their own curves.
DESCRIPTIONS = {
    "loss": "what is minimized, the mean over the steps since the point before",
    "lr": "the learning rate",
    "steps_per_second": "training steps a second, evaluations and checkpoints left out",
    "confidence": "of guessed labels: the mean of their largest probability",
    "guess_accuracy": "percent of guessed labels that are right, of unlabeled images whose class is known",
    "max_class_frequency": "share of the guesses that goes to the class guessed most",
    "effective_num_classes": "how many classes, equally often guessed, would spread as widely: exp of the entropy",
    "validation_accuracy": "percent of the validation images that the averaged network gets right",
    "test_accuracy": "percent of the test images that the averaged network gets right",
    "views_and_guesses": "views of unlabeled images, a row for each image, with the label guessed for it",
    "mixed_batch": "what the next step trains on, with its labels",
}
# Curves that do not belong to the group ``train``, as losses, schedules and whatever a method adds do.
GROUPS = {
    **dict.fromkeys(["confidence", "guess_accuracy", "max_class_frequency", "effective_num_classes"], "guesses"),
    **dict.fromkeys(["validation_accuracy", "test_accuracy"], "accuracy"),
}

MOST_NAMES = 100


class TensorBoardWriter:
    """Writes one run's TensorBoard events, all to one file that only ever grows.

    A resumed run cuts the file back to the size it had at the checkpoint: its curves are the uninterrupted run's.
    """

    def __init__(self, path: Path, size: int, folder: int | None = None) -> None:
        """Open the events of the run directory ``path`` at ``size`` bytes, 0 for a new run.

        It is opened in the folder of the descriptor ``folder``, if there is one, wherever that is by now.

        ``descriptions`` of curves, by name, may be added to.

        Raises:
            UserError: if the file cannot be written, then or later.
        """
        # TensorBoard orders files by the number in their name, which is a time otherwise; one file needs no order.
        self.path = path / "events.out.tfevents.0"
        with explain_os_errors(self.path):
            self._file = open_in(folder, self.path, "ab", buffering=0)
            self._file.truncate(min(size, self._file.tell()))
            self._file.seek(0, os.SEEK_END)
        self.descriptions = dict(DESCRIPTIONS)
        self.is_new = not self._file.tell()
        if self.is_new:
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def save(self) -> int:
        """Write everything through to the disk, and return the file's size in bytes."""
        with explain_os_errors(self.path):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """Add a point to each curve that ``values`` has a number for."""
        points = [
            Summary.Value(
                tag=f"{GROUPS.get(name, 'train')}/{name}",
                simple_value=value,
                metadata=_metadata(self.descriptions.get(name, ""), "scalars"),
            )
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
        self._add(points, step)

    def settings(self, values: dict[str, Any]) -> None:
        """Put a run's settings on the HParams page, by which runs are compared."""
        # What torch makes also says which settings there can be, which must then be the same in all runs.
        _, session_start, _ = hparams(values, {})
        self._write(Event(wall_time=time.time(), summary=session_start))

    def finish(self) -> None:
        """Let the HParams page show that the run is finished."""
        _, _, session_end = hparams({}, {})
        self._write(Event(wall_time=time.time(), summary=session_end))

    def batch(self, preview: dict[str, np.ndarray], classes: Sequence[str], step: int) -> None:
        """Show the views with their guessed labels, and the mixed batch with its labels, of ``Trainer.preview``."""
        if "views" in preview:
            views = preview["views"][:, :8]  # a row for each image, a column for each view
            captions = [describe_guess(guess, classes) for guess in preview["guesses"][:8] for _ in views]
            picture = draw_grid(views.swapaxes(0, 1).reshape(-1, *views.shape[2:]), captions, columns=len(views))
            self.picture("views_and_guesses", picture, step, DESCRIPTIONS["views_and_guesses"], classes)
        total = len(preview["images"])
        chosen = np.arange(0, total, max(1, total // 24))[:24]  # from labeled and unlabeled alike
        captions = [describe_guess(target, classes) for target in preview["targets"][chosen]]
        picture = draw_grid(preview["images"][chosen], captions, columns=4)
        self.picture("mixed_batch", picture, step, DESCRIPTIONS["mixed_batch"], classes)

    def confusion(self, name: str, matrix: np.ndarray, classes: Sequence[str], step: int) -> None:
        """Show a confusion matrix, (C, C) counts with the true class in rows."""
        text = f"the {name} images: of each true class, in rows, percent predicted as each class, in columns"
        self.picture(f"confusion/{name}", draw_confusion(matrix, classes), step, text, classes)

    def picture(self, tag: str, picture: Image.Image, step: int, description: str, classes: Sequence[str] = ()) -> None:
        """Show a picture under ``tag``, with a description, and the names of classes that letters fail."""
        names = ", ".join(f"#{i} {single_line(name)}" for i, name in enumerate(classes[:MOST_NAMES]))
        text = f"{description}; classes: {names}" if names else description
        image = Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=to_png(picture)
        )
        self._add([Summary.Value(tag=tag, image=image, metadata=_metadata(text, "images"))], step)

    def _write(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with explain_os_errors(self.path):
            left = record.getbuffer()
            while left:  # a disk that becomes full takes a part, and says so at the next attempt alone
                left = left[self._file.write(left) :]

    def _add(self, values: list[Summary.Value], step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _metadata(description: str, plugin: str) -> SummaryMetadata:
    return SummaryMetadata(summary_description=description, plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
