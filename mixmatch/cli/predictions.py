"""Predictions for image files: a CSV table, an HTML page of the least certain images, copies by class, accuracy."""

import base64
import bisect
import csv
import html
import itertools
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, classification_report, recall_score
from tqdm import tqdm

from mixmatch.data.dataset import is_folder_name
from mixmatch.data.folder.decode import Unreadable, decode_all
from mixmatch.data.folder.index import check_paths_exist, find_images
from mixmatch.errors import UserError, single_line
from mixmatch.files import csv_path, csv_text, explain_os_errors, open_atomically, write_atomically
from mixmatch.inference import Classifier
from mixmatch.runs.plots import to_png

BATCH_SIZE = 512
THUMBNAIL = 112  # pixels of an image's side on the HTML page


@dataclass(frozen=True)
class Prediction:
    """The prediction for one file."""

    file: Path
    true_label: int | None  # the class that a folder names
    probabilities: NDArray[np.float32]  # (C,), empty if the file could not be read
    pixels: NDArray[np.uint8]  # (size, size, c), the input of the network
    pages: int = 1  # 2: the file has several pages, of which the first was used
    problem: str = ""  # why the file could not be read

    @property
    def label(self) -> int:
        """The predicted class."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return float(self.probabilities.max())


def check_paths(images: Sequence[Path], output: Path, copies: Path | None) -> None:
    """Raise UserError if an image does not exist, or an output would go over or among the images."""
    check_paths_exist(images)
    resolved = [path.resolve() for path in images]
    if output.resolve() in resolved or output.suffix.lower() in Image.registered_extensions():
        raise UserError(f"--output: {output} is an image; give another name for the CSV file")
    for path in resolved if copies else []:
        if copies and (path == copies.resolve() or path in copies.resolve().parents):
            raise UserError(f"--copy-by-class: {copies} must be outside the input folder {path}")


def write_predictions(
    model: Classifier, images: Sequence[Path], output: Path, page: Path | None, page_size: int, copies: Path | None
) -> None:
    """Classify image files, write the results, and print the accuracy on files whose class is known.

    Args:
        model: from ``load_model``.
        images: files and folders.
        output: the CSV file.
        page: the HTML page of the least certain images.
        page_size: number of images on it.
        copies: folder for copies of the files, by class.

    Raises:
        UserError: if no file could be read, or something cannot be written.
    """
    start, classes = time.monotonic(), model.classes
    unreadable = multi_page = count = 0
    labels: list[tuple[int, int]] = []  # true and predicted
    least_certain: list[Prediction] = []
    with explain_os_errors(output), open_output(output) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "class", "confidence", "true_class", "problem", *map(csv_text, classes)])
        predictions = predict_files(model, list_files(images, classes))
        for prediction in tqdm(predictions, unit="file", disable=not sys.stderr.isatty(), leave=False):
            table.writerow(to_row(prediction, classes))
            if prediction.problem:
                unreadable += 1
                continue
            count += 1
            multi_page += prediction.pages > 1
            if prediction.true_label is not None:
                labels.append((prediction.true_label, prediction.label))
            if page is not None:
                bisect.insort(least_certain, prediction, key=lambda other: other.confidence)
                del least_certain[page_size:]
            if copies is not None:
                copy_to_class_folder(copies, classes[prediction.label], prediction.file)
    if page is not None:
        title = f"The {len(least_certain)} least certain of {count} images, least certain first"
        write_atomically(page, to_html(title, least_certain, classes).encode("utf-8", "backslashreplace"))
    if labels:
        print(describe_accuracy(labels, classes))
    if multi_page:
        print(f"files with several pages, of which the first was used: {multi_page}")
    if unreadable:
        print(f"{unreadable} of {count + unreadable} files could not be read; see the column problem")
    if not count:
        raise UserError(f"no image could be read; see the column problem in {output}")
    print(f"{count} images classified, {count / max(time.monotonic() - start, 1e-9):.0f} per second: {output}")


@contextmanager
def open_output(path: Path) -> Iterator[TextIO]:
    """Open a text file to write. An existing file stays as it is until the new one is complete."""
    device = path.exists() and not path.is_file()  # such as /dev/stdout
    with open(path, "wb") if device else open_atomically(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # flushes without closing


def list_files(paths: Sequence[Path], classes: Sequence[str]) -> Iterator[tuple[Path, int | None]]:
    """Yield each file, in folders too, with the class that the nearest folder below the given path names.

    Raises:
        UserError: if a folder cannot be read.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    for path in paths:
        if not path.is_dir():
            yield path, None
            continue
        for file in find_images(path):
            labels = [numbers[part] for part in file.relative_to(path).parts[:-1] if part in numbers]
            yield file, labels[-1] if labels else None


def predict_files(model: Classifier, files: Iterable[tuple[Path, int | None]]) -> Iterator[Prediction]:
    """Yield the prediction for each file, in order and in bounded memory.

    Args:
        model: from ``load_model``.
        files: with their true labels.
    """
    spec, remaining = model.spec, iter(files)
    while batch := list(itertools.islice(remaining, BATCH_SIZE)):
        decoded = [image for _, image in decode_all((file for file, _ in batch), spec.size, spec.channels, spec.fit)]
        readable = [image.pixels for image in decoded if not isinstance(image, Unreadable)]
        probabilities = iter(model.predict(np.stack(readable)).cpu().numpy() if readable else ())
        for (file, true_label), image in zip(batch, decoded, strict=True):
            if isinstance(image, Unreadable):
                yield Prediction(file, true_label, np.empty(0, np.float32), np.empty(0, np.uint8), problem=str(image))
            else:
                yield Prediction(file, true_label, next(probabilities), image.pixels, image.pages)


def to_row(prediction: Prediction, classes: Sequence[str]) -> list[str]:
    """Return a row of the table: path, class, confidence, true class, problem, and the probability of each class.

    A cell that a spreadsheet would take for a formula is prefixed: a path with ``./``, other text with an apostrophe.
    """
    path = csv_path(str(prediction.file))
    true_class = "" if prediction.true_label is None else csv_text(classes[prediction.true_label])
    if prediction.problem:
        return [path, "", "", true_class, csv_text(prediction.problem), *[""] * len(classes)]
    probabilities = [f"{probability:.6f}" for probability in prediction.probabilities]
    return [path, csv_text(classes[prediction.label]), max(probabilities), true_class, "", *probabilities]


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Least certain images</title><style>
body { font: 14px system-ui, sans-serif; margin: 24px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
figure { margin: 0; padding: 8px; border: 1px solid #ccc; border-radius: 6px; overflow: hidden; }
figure.wrong { border-color: #c00; background: #fff4f4; }
img { width: 112px; height: 112px; image-rendering: pixelated; display: block; margin: 0 auto 6px; }
figcaption { overflow-wrap: anywhere; } small { color: #666; }
</style></head><body><h1>TITLE</h1><main>
FIGURES
</main></body></html>
"""


def to_html(title: str, predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    """Return a self-contained page: each image with its three most likely classes, and its true class if known."""
    names = [html.escape(single_line(name)) for name in classes]
    figures = []
    for prediction in predictions:
        image = Image.fromarray(prediction.pixels.squeeze())  # gray without channels
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        likely = np.argsort(-prediction.probabilities, kind="stable")[:3]
        lines = [f"{names[label]} {100 * prediction.probabilities[label]:.1f}%" for label in likely]
        if prediction.true_label is not None:
            lines.append(f"true class: {names[prediction.true_label]}")
        wrong = " class=wrong" * (prediction.true_label not in (None, prediction.label))
        path = html.escape(single_line(prediction.file))
        figures.append(
            f'<figure{wrong}><img alt="" title="{path}" '
            f'src="data:image/png;base64,{base64.b64encode(to_png(image)).decode()}">'
            f"<figcaption><b>{lines[0]}</b><br>{'<br>'.join(lines[1:])}<br><small>{path}</small></figcaption></figure>"
        )
    return PAGE.replace("TITLE", title).replace("FIGURES", "\n".join(figures))


def copy_to_class_folder(folder: Path, name: str, file: Path) -> None:
    """Copy a file into the folder of its class. If the name is taken, the copy gets a number.

    Args:
        folder: holds the folders of the classes.
        name: of the class.
        file: the original.

    Raises:
        UserError: if it cannot be read or written.
    """
    if not is_folder_name(name):
        raise UserError(f"--copy-by-class: class {name!r} cannot be a folder name; use the CSV file instead")
    target = folder / name / file.name
    with explain_os_errors(folder / name):
        target.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            try:
                with open(file, "rb") as source, open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy)
                return
            except FileExistsError:
                target = folder / name / f"{file.stem}-{number}{file.suffix}"


def describe_accuracy(labels: Sequence[tuple[int, int]], classes: Sequence[str]) -> str:
    """Return accuracy, balanced accuracy, and precision and recall of each class.

    Args:
        labels: true and predicted label of each file.
        classes: names.
    """
    true, predicted = zip(*labels, strict=True)
    # Balanced accuracy is the mean recall of the classes that have files.
    balanced = recall_score(true, predicted, labels=sorted(set(true)), average="macro")
    present = sorted({*true, *predicted})
    names = [single_line(classes[label]) for label in present]
    report = classification_report(true, predicted, labels=present, target_names=names, digits=3, zero_division=0)
    return (
        f"accuracy {100 * accuracy_score(true, predicted):.2f}% of {len(labels)} files whose class is known, "
        f"balanced accuracy {100 * balanced:.2f}%\n{report}"
    )
