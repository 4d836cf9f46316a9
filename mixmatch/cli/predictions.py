"""What a trained network says of files of pictures: a row for each, and how often it is right where that is known."""

import base64
import csv
import heapq
import html
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image

from mixmatch.data.folder.decode import Unreadable, check_there, decode_all, find_images, is_folder_name
from mixmatch.errors import UserError, single_line
from mixmatch.evaluation import balanced, recalls
from mixmatch.files import csv_path, csv_text, explain_os_errors
from mixmatch.inference import Classifier
from mixmatch.runs.plots import to_png

BATCH = 256
THUMBNAIL = 112  # pixels of a picture's side on the sheet


@dataclass(frozen=True)
class Prediction:
    """Of one file.

    Attributes:
        file: its path.
        truth: the number of its class, where a folder says it, else None.
        probabilities: (C,) float; None if the file could not be read.
        problem: why it could not be read, else empty.
        pixels: (size, size, c) uint8, as the network saw it.
        pages: of the file, of which the first was used; 2 stands for any number above 1.
    """

    file: Path
    truth: int | None
    probabilities: np.ndarray | None = None
    problem: str = ""
    pixels: np.ndarray | None = None
    pages: int = 1

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return 0.0 if self.probabilities is None else float(self.probabilities.max())

    @property
    def label(self) -> int:
        """The number of the predicted class."""
        assert self.probabilities is not None
        return int(self.probabilities.argmax())


def list_files(paths: Sequence[Path], classes: Sequence[str]) -> Iterator[tuple[Path, int | None]]:
    """Yield files, and all below folders, each with its class if a folder below the one given is named like one.

    Raises:
        UserError: if a path is not there, or a folder cannot be read.
    """
    check_there(paths)
    numbers = {name: number for number, name in enumerate(classes)}
    for path in paths:
        if path.is_dir():
            for file in find_images(path):
                above = [numbers[part] for part in file.relative_to(path).parts[:-1] if part in numbers]
                yield file, above[-1] if above else None
        else:
            yield path, None


def predict_files(model: Classifier, files: Iterable[tuple[Path, int | None]]) -> Iterator[Prediction]:
    """Yield what ``model`` says of each file, in order and in bounded memory.

    Args:
        model: from ``load_model``.
        files: with their classes, from ``list_files``.
    """
    spec = model.spec
    # Each file goes two ways: to be decoded ahead, and along with what comes of it.
    ahead, along = itertools.tee(files)
    decoded = decode_all((file for file, _ in ahead), spec.size, spec.channels, spec.fit)
    pairs = zip(decoded, (truth for _, truth in along), strict=True)
    while batch := list(islice(pairs, BATCH)):
        readable = [picture.pixels for (_, picture), _ in batch if not isinstance(picture, Unreadable)]
        guesses = iter(())
        if readable:
            guesses = iter(model.predict(torch.from_numpy(np.stack(readable))).cpu().numpy())
        for (file, picture), truth in batch:
            if isinstance(picture, Unreadable):
                yield Prediction(file, truth, problem=str(picture))
            else:
                yield Prediction(file, truth, next(guesses), pixels=picture.pixels, pages=picture.pages)


class Table:
    """Writes predictions as CSV: path, class, confidence, true class, problem, and the probability of every class.

    Text is UTF-8, bytes that are none of it escaped. A cell that a spreadsheet would compute is not one: a path
    begins with ``./`` then, other text with an apostrophe.
    """

    def __init__(self, file: TextIO, classes: Sequence[str]) -> None:
        """Write the head of the table.

        Args:
            file: opened with ``newline=""``.
            classes: names.
        """
        self.classes = [csv_text(name) for name in classes]
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(["path", "class", "confidence", "true_class", "problem", *self.classes])

    def write(self, prediction: Prediction) -> None:
        """Write a row."""
        truth = "" if prediction.truth is None else self.classes[prediction.truth]
        path = csv_path(str(prediction.file))
        if prediction.probabilities is None:
            row = [path, "", "", truth, csv_text(prediction.problem), *[""] * len(self.classes)]
        else:
            chances = [f"{chance:.6f}" for chance in prediction.probabilities]
            row = [path, self.classes[prediction.label], f"{prediction.confidence:.6f}", truth, "", *chances]
        self._writer.writerow(row)


class Sheet:
    """Keeps the least certain predictions, with small pictures, for one HTML page that needs no other file."""

    def __init__(self, classes: Sequence[str], most: int) -> None:
        """Start with none.

        Args:
            classes: names.
            most: how many are kept.
        """
        self.classes, self.most = classes, most
        self._heap: list[tuple[float, int, Prediction, bytes]] = []
        self._seen = 0

    def add(self, prediction: Prediction) -> None:
        """Keep a prediction if it is among the least certain so far."""
        if prediction.pixels is None:
            return
        self._seen += 1
        key = -prediction.confidence
        if len(self._heap) == self.most and key <= self._heap[0][0]:
            return
        item = (key, -self._seen, prediction, thumbnail(prediction.pixels))
        (heapq.heappushpop if len(self._heap) == self.most else heapq.heappush)(self._heap, item)

    def to_html(self) -> str:
        """Return the page, least certain first."""
        figures = []
        for _, _, prediction, picture in sorted(self._heap, key=lambda item: item[:2], reverse=True):
            assert prediction.probabilities is not None
            likely = np.argsort(-prediction.probabilities, kind="stable")[:3]
            lines = [
                f"{'<b>' if i == 0 else ''}{text(self.classes[n])} {100 * prediction.probabilities[n]:.1f}%"
                f"{'</b>' if i == 0 else ''}"
                for i, n in enumerate(likely)
            ]
            wrong = prediction.truth is not None and prediction.truth != prediction.label
            if prediction.truth is not None:
                lines.append(f"is {text(self.classes[prediction.truth])}")
            path = text(str(prediction.file))
            figures.append(
                f'<figure{" class=wrong" if wrong else ""}><img alt="" title="{path}" '
                f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
                f"<figcaption>{'<br>'.join(lines)}<br><small>{path}</small></figcaption></figure>"
            )
        head = f"The {len(figures)} least certain of {self._seen} pictures, least certain first"
        return PAGE.replace("HEAD", head).replace("FIGURES", "\n".join(figures))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Least certain pictures</title><style>
body { font: 14px system-ui, sans-serif; margin: 24px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
figure { margin: 0; padding: 8px; border: 1px solid #ccc; border-radius: 6px; overflow: hidden; }
figure.wrong { border-color: #c00; background: #fff4f4; }
img { width: 112px; height: 112px; image-rendering: auto; display: block; margin: 0 auto 6px; }
figcaption { overflow-wrap: anywhere; } small { color: #666; }
</style></head><body><h1>HEAD</h1><main>
FIGURES
</main></body></html>
"""


def text(value: str) -> str:
    """Return text as it may stand in HTML, also between quotes."""
    return html.escape(single_line(value))


def thumbnail(pixels: np.ndarray) -> bytes:
    """Return a small PNG of (size, size, c) uint8."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    way = Image.Resampling.NEAREST if image.width < THUMBNAIL else Image.Resampling.BICUBIC
    return to_png(image.resize((THUMBNAIL, THUMBNAIL), way))


def sort_into(folder: Path, name: str, file: Path) -> Path:
    """Copy a file into a folder named like its class; never over another: the copy gets a number if need be.

    Args:
        folder: holds the folders of classes.
        name: of the class.
        file: is left where it is.

    Returns:
        The copy.

    Raises:
        UserError: if it cannot be written.
    """
    if not is_folder_name(name):
        raise UserError(f"--copy-by-class: class {name!r} is no name for a folder; sort by the table of rows instead")
    place = folder / name
    with explain_os_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            target = place / (file.name if number == 1 else f"{file.stem}-{number}{file.suffix}")
            try:
                with open(file, "rb") as source, open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy)
                return target
            except FileExistsError:
                continue
    raise AssertionError("unreachable")


@dataclass
class Score:
    """How often predictions are right, of files whose class is known."""

    num_classes: int
    confusion: np.ndarray = field(init=False)  # (C, C) int64, rows the true class, columns the predicted

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(self, prediction: Prediction) -> None:
        """Count a prediction, if its class is known."""
        if prediction.truth is not None and prediction.probabilities is not None:
            self.confusion[prediction.truth, prediction.label] += 1

    def lines(self, classes: Sequence[str]) -> list[str]:
        """Return accuracy, and recall and precision of each class that was there or was guessed, percent."""
        total, right, shares = self.confusion.sum(), self.confusion.diagonal(), recalls(self.confusion)
        if not total:
            return []
        there, guessed = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        width = max(len(single_line(name)) for name in classes)
        lines = [
            f"accuracy {100 * right.sum() / total:.2f}% of {total} files whose class is known, "
            f"balanced accuracy {balanced(shares):.2f}%",
            f"  {'class':<{width}}   files   recall  precision",
        ]
        for number, name in enumerate(classes):
            if there[number] or guessed[number]:
                recall = "-" if shares[number] is None else f"{shares[number]:.1f}%"
                precision = f"{100 * right[number] / guessed[number]:.1f}%" if guessed[number] else "-"
                lines.append(f"  {single_line(name):<{width}}{there[number]:>8}{recall:>9}{precision:>11}")
        return lines
