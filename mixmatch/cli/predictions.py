"""Predictions for image files: a CSV table, copies by class, accuracy.

They are collected in a part file. The outputs are made from it when it is complete, so that an interrupted command
continues and has the same outputs.
"""

import filecmp
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixmatch.cli.part_file import UNREADABLE, ListedFile, PartFile, Prediction
from mixmatch.cli.prediction_table import UNCERTAIN, Summary, print_summary, write_table
from mixmatch.data.dataset import is_folder_name
from mixmatch.data.folder.decode import Unreadable, decode_all
from mixmatch.data.folder.index import check_paths_exist, find_images, to_nfc
from mixmatch.errors import Interrupted, Stopped, UserError, single_line
from mixmatch.files import explain_os_errors, open_atomically
from mixmatch.inference import Classifier, fingerprint
from mixmatch.output import shows_bars, tqdm
from mixmatch.signals import catch_stop_signals

BATCH_SIZE = 512


@dataclass(frozen=True)
class Outputs:
    """What the command writes.

    Attributes:
        table: the CSV file.
        copies: folder for copies of the files, by class.
        min_confidence: files below it have no class.
    """

    table: Path
    copies: Path | None = None
    min_confidence: float = 0


def check_inputs(images: Sequence[Path], outputs: Outputs) -> None:
    """Raise UserError if an image does not exist, or an output would go over or among the images, or to no file."""
    check_paths_exist(images)
    resolved = [path.resolve() for path in images]
    table = outputs.table
    if table.resolve() in resolved or table.suffix.lower() in Image.registered_extensions():
        raise UserError(f"--output: {table} is an image; give another name for the CSV file")
    if images and table.exists() and not table.is_file():
        raise UserError(f"--output: {table} is not a file; give another name for the CSV file")
    if outputs.copies is not None:
        target = outputs.copies.resolve()
        for path in resolved:
            if path in (target, *target.parents):
                raise UserError(f"--copy-by-class: {outputs.copies} must be outside the input folder {path}")


def write_predictions(
    model: Classifier,
    images: Sequence[Path],
    outputs: Outputs,
    trained_on: Collection[str] = (),
    knows_all: bool = True,
) -> None:
    """Classify image files, write the results, and print the accuracy on files whose class is known.

    Args:
        model: from ``load_model``.
        images: files and folders.
        outputs: what to write.
        trained_on: real paths that do not count for the accuracy.
        knows_all: whether these are all that the network was trained on.

    Raises:
        UserError: if no file could be read, or something cannot be written.
        Stopped: after a signal; the same command continues.
    """
    start = time.monotonic()
    files = list(progress_bar(find_files(images, model.classes, outputs.table), desc="listing"))
    if not files:
        raise UserError(f"{', '.join(map(str, images[:3]))}: no files found; give files or folders of pictures")
    num_new, summary = predict_with_part_file(model, files, outputs)
    print_summary(files, summary, model.classes, trained_on, knows_all)
    if not summary.num_images:
        raise UserError(f"no image could be read; see the column problem in {outputs.table}")
    rate = f", {num_new / max(time.monotonic() - start, 1e-9):.0f} per second" * bool(num_new)
    print(f"{summary.num_images} image{'s' * (summary.num_images != 1)} classified{rate}: {outputs.table}")
    if outputs.copies is not None:
        print(f"copies by class: {outputs.copies}")


def predict_with_part_file(model: Classifier, files: Sequence[ListedFile], outputs: Outputs) -> tuple[int, Summary]:
    """Write all outputs. If this is interrupted, the predictions stay in a part file.

    Returns:
        The number of files that had no prediction in the part file, and the summary of all.

    Raises:
        UserError: if an output or the part file cannot be written.
        Stopped: after a signal.
    """
    path = Path(os.path.realpath(outputs.table)) if outputs.table.is_symlink() else outputs.table
    part = PartFile(path.with_name(f".{path.name}.part"), files, fingerprint(model))
    try:
        with catch_stop_signals() as signals:
            signals.at_once = True
            with explain_os_errors(outputs.table), part:
                remaining = part.remaining()
                if part.num_done:
                    print(f"continuing {part.path}: {part.num_done:,} of {len(files):,} files are done", flush=True)
                batches = predict_in_batches(model, [files[index] for index in remaining], part.num_done)
                for start, batch in zip(itertools.count(step=BATCH_SIZE), batches, strict=False):
                    part.append(remaining[start : start + BATCH_SIZE], batch)
                with open_atomically(outputs.table) as table:
                    rows = progress_bar(part.read(), len(files), desc="writing")
                    summary = write_table(table, rows, model.classes, outputs.min_confidence)
                write_copies(model, files, summary, outputs)
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        done = f"{part.num_done:,} of {len(files):,} files are done"
        raise Stopped(number, f"interrupted: {done}; the same command continues") from None
    return len(remaining), summary


def find_files(paths: Sequence[Path], classes: Sequence[str], table: Path) -> Iterator[ListedFile]:
    """Yield each file once, in folders too, with the class that the nearest folder names, and its name in the table.

    Folders are looked at up to the given one, or that of a given file. Names are relative to the folder if only one is
    given, so that the table is a labels file of that folder; otherwise they are the given paths. A former table is
    left out.

    Raises:
        UserError: if a folder cannot be read.
    """
    numbers, left_out = {name: number for number, name in enumerate(classes)}, {os.path.abspath(table)}
    for path in paths:
        is_folder = path.is_dir()
        folder = path if is_folder else path.parent
        top = os.path.basename(os.path.abspath(folder))
        for file in find_images(path) if is_folder else [path]:
            absolute = os.path.abspath(file)
            if absolute in left_out:
                continue
            left_out.add(absolute)
            below = file.relative_to(folder)
            names = (to_nfc(part) for part in (top, *below.parts[:-1]))
            labels = [numbers[name] for name in names if name in numbers]
            name = below.as_posix() if is_folder and len(paths) == 1 else str(file)
            yield ListedFile(str(file), labels[-1] if labels else None, name)


def predict_in_batches(model: Classifier, files: Sequence[ListedFile], num_done: int = 0) -> Iterator[list[Prediction]]:
    """Yield the predictions for files, batch by batch, in order; the bar shows ``num_done`` others as done."""
    with progress_bar(total=num_done + len(files), initial=num_done) as bar:
        for start in range(0, len(files), BATCH_SIZE):
            predictions = predict_batch(model, files[start : start + BATCH_SIZE])
            yield predictions
            bar.update(len(predictions))


def predict_batch(model: Classifier, files: Sequence[ListedFile]) -> list[Prediction]:
    """Return the prediction for each file."""
    spec = model.spec
    decoded = [image for _, image in decode_all((Path(f.path) for f in files), spec.size, spec.channels, spec)]
    readable = [image.pixels for image in decoded if not isinstance(image, Unreadable)]
    probabilities = iter(model.predict_probabilities(np.stack(readable)).cpu().numpy() if readable else ())
    predictions = []
    for file, image in zip(files, decoded, strict=True):
        if isinstance(image, Unreadable):
            predictions.append(Prediction(file, UNREADABLE, [], problem=str(image)))
        else:
            for note in image.info.notes:
                tqdm.write(single_line(f"note: {file.path}: {note}"), file=sys.stderr)
            row: NDArray[np.float32] = next(probabilities)
            values = [round(value, 6) for value in row.tolist()]
            predictions.append(Prediction(file, int(row.argmax()), values, image.info.pages))
    return predictions


def progress_bar(
    iterable: Iterable[Any] | None = None, total: int | None = None, initial: int = 0, desc: str | None = None
) -> "tqdm[Any]":
    """Return a bar of files."""
    return tqdm(iterable, desc, total, initial=initial, unit="file", disable=not shows_bars(), leave=False)


def write_copies(model: Classifier, files: Sequence[ListedFile], summary: Summary, outputs: Outputs) -> None:
    """Write the copies by class, if they are wanted.

    Raises:
        UserError: if they cannot be written.
    """
    if outputs.copies is not None:
        for file, label in progress_bar(zip(files, summary.labels, strict=True), len(files), desc="copying"):
            if label not in (UNREADABLE, UNCERTAIN):
                copy_to_class_folder(outputs.copies, model.classes[label], Path(file.path))


def copy_to_class_folder(folder: Path, name: str, file: Path) -> None:
    """Copy a file into the folder of its class, unless that has the copy. If the name is taken, it gets a number.

    Args:
        folder: holds the folders of the classes.
        name: of the class.
        file: the original.

    Raises:
        UserError: if it cannot be read or written.
    """
    target = class_folder(folder, name) / file.name
    with explain_os_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            if not target.exists():
                break
            if filecmp.cmp(file, target, shallow=False):
                return
            target = target.with_name(f"{file.stem}-{number}{file.suffix}")
        temporary = target.with_name(f".{os.getpid()}.tmp")  # a killed command leaves no incomplete copy
        try:
            shutil.copyfile(file, temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def class_folder(folder: Path, name: str) -> Path:
    """Return the folder of a class. Raise UserError if its name leads elsewhere."""
    if not is_folder_name(name):
        raise UserError(f"--copy-by-class: class {name!r} cannot be a folder name; use the CSV file instead")
    return folder / name
