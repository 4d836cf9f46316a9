"""What TensorBoard shows of a run: curves and pictures, under the names that metrics.jsonl uses."""

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from mixmatch.files import explain_os_errors

GROUPS = {
    "train": ["loss", "loss_labeled", "loss_unlabeled", "lambda_u", "lr", "steps_per_second"],
    "guesses": ["confidence", "guess_accuracy", "most_guessed_share", "guessed_classes"],
    "accuracy": ["validation_accuracy", "test_accuracy"],
}
TILE = 72  # pixels of an image's side in a picture, at least
CAPTION = 28  # pixels below it, for two lines


class Board:
    """Writes one run's TensorBoard events, all to one file that only ever grows.

    A resumed run cuts the file back to the size it had at the checkpoint: its curves are the uninterrupted run's.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Open the events of the run directory ``path`` at ``size`` bytes, 0 for a new run.

        Raises:
            UserError: if the file cannot be written, then or later.
        """
        # TensorBoard orders files by the number in their name, which is a time otherwise; one file needs no order.
        self.path = path / "events.out.tfevents.0"
        with explain_os_errors(self.path):
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
            self._file.truncate(min(size, self._file.tell()))
            self._file.seek(0, os.SEEK_END)
        self._records = RecordWriter(self._file)
        if not self._file.tell():
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def save(self) -> int:
        """Write everything through to the disk, and return the file's size in bytes."""
        with explain_os_errors(self.path):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """Add a point to each curve that ``values`` has a number for."""
        tags = {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names}
        points = [(tag, values[name]) for name, tag in tags.items() if values.get(name) is not None]
        self._add([Summary.Value(tag=tag, simple_value=value) for tag, value in points], step)

    def pictures(self, preview: dict[str, Tensor], classes: Sequence[str], step: int) -> None:
        """Show the views with their guessed labels, and the mixed batch with its labels, of ``Trainer.preview``."""
        if "views" in preview:
            views = preview["views"][:, :8]  # a row for each image, a column for each view
            captions = [_describe(guess, classes) for guess in preview["guesses"][:8] for _ in views]
            picture = draw_grid(views.transpose(0, 1).flatten(0, 1), captions, columns=len(views))
            self._add_image("views_and_guesses", picture, step)
        total = len(preview["images"])
        chosen = torch.arange(0, total, max(1, total // 24))[:24]  # from labelled and unlabelled alike
        captions = [_describe(target, classes) for target in preview["targets"][chosen]]
        picture = draw_grid(preview["images"][chosen], captions, columns=8)
        self._add_image("mixed_batch", picture, step)

    def confusion(self, name: str, matrix: Tensor, classes: Sequence[str], step: int) -> None:
        """Show a confusion matrix, (C, C) counts with the true class in rows."""
        self._add_image(f"confusion/{name}", draw_confusion(matrix, classes), step)

    def _write(self, event: Event) -> None:
        with explain_os_errors(self.path):
            self._records.write(event.SerializeToString())

    def _add(self, values: list[Summary.Value], step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add_image(self, tag: str, picture: Image.Image, step: int) -> None:
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        image = Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=encoded.getvalue()
        )
        self._add([Summary.Value(tag=tag, image=image)], step)


def draw_grid(images: Tensor, captions: Sequence[str], columns: int) -> Image.Image:
    """Draw images in rows, each over its caption.

    Args:
        images: (n, c, h, w) in [-1, 1], c 1 or 3.
        captions: n texts of up to two lines.
        columns: images per row.
    """
    pixels = ((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    scale = -(-TILE // pixels.shape[2])
    width, height = scale * pixels.shape[2] + 4, scale * pixels.shape[1] + 4
    rows = -(-len(pixels) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (height + CAPTION)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = i % columns * width, i // columns * (height + CAPTION)
        tile = Image.fromarray(image).resize((width - 4, height - 4), Image.Resampling.NEAREST)
        canvas.paste(tile, (left, top))
        draw.text((left, top + height - 4), caption, "black", font, spacing=0)
    return canvas


def draw_confusion(matrix: Tensor, classes: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, (C, C) counts, as shares of each true class, with numbers where there is room."""
    shares = (matrix / matrix.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    cell = max(4, min(40, 800 // len(classes)))
    margin = 76
    side = margin + cell * len(classes)
    canvas = Image.new("RGB", (side + 8, side + 8), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, name in enumerate(classes):
        for j in range(len(classes)):
            share = shares[i, j]
            left, top = margin + j * cell, margin + i * cell
            shade = round(255 * (1 - share))
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), (shade, shade, 255))
            if cell >= 28 and matrix[i, j]:
                ink = "white" if share > 0.5 else "black"
                draw.text((left + cell / 2, top + cell / 2), f"{100 * share:.0f}", ink, font, anchor="mm")
        if cell >= 12:
            at = margin + (i + 0.5) * cell
            draw.text((margin - 4, at), name[:11], "black", font, anchor="rm")
            draw.text((at, margin - 4), name[:6], "black", font, anchor="mb")
    draw.text((2, 2), "true class in rows,\npredicted in columns,\n% of the row", "black", font)
    return canvas


def _describe(distribution: Tensor, classes: Sequence[str]) -> str:
    """Name the two most likely classes with their percentages, a line each; one alone if the other has none."""
    shares, order = distribution.cpu().topk(min(2, len(classes)))
    lines = [f"{classes[i][:8]} {100 * share:.0f}" for share, i in zip(shares.tolist(), order.tolist(), strict=True)]
    return "\n".join(lines if shares[-1] >= 0.005 else lines[:1])
