"""The predictions of a command that is not complete. If it is interrupted, the same command continues with them.

The first line identifies the model. The other lines are JSON, one for each file. Each batch of files ends with an empty
line; what follows the last of these is incomplete and dropped.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mixmatch.errors import UserError

MAGIC = b"mixmatch predictions, format "
FORMAT = MAGIC + b"1, "  # other columns need another number
UNREADABLE = -1  # instead of a label
NOT_DONE = -1  # instead of an offset


class ListedFile(NamedTuple):
    """A file to classify."""

    path: str
    true_label: int | None  # the class that a folder names
    name: str  # in the table


@dataclass(frozen=True)
class Prediction:
    """The prediction for one file."""

    file: ListedFile
    label: int  # the predicted class, or UNREADABLE
    probabilities: list[float]  # (C,), with 6 decimals; empty if the file could not be read
    pages: int = 1  # 2: the file has several pages, of which the first was used
    problem: str = ""  # why the file could not be read

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return max(self.probabilities)


class PartFile:
    """A part file that no other process uses.

    On exit, it is removed if ``complete`` is set or no file is done.

    Attributes:
        path: of the part file.
        files: to classify. Those with a prediction are done.
        complete: whether it is no longer needed.
    """

    def __init__(self, path: Path, files: Sequence[ListedFile], model: str) -> None:
        """Prepare to open a part file.

        Args:
            path: of the part file.
            files: to classify. Former predictions are matched by absolute path.
            model: its fingerprint. Predictions of another one are dropped.
        """
        self.path, self.files, self.complete = path, files, False
        self._header = FORMAT + model.encode() + b"\n"
        self._offsets: NDArray[np.int64] = np.full(len(files), NOT_DONE, np.int64)  # of the lines of the files
        self._lock = FileLock(f"{path}.lock")
        self._folder = os.getcwd()

    def __enter__(self) -> Self:
        """Open the file and find the predictions in it.

        Raises:
            OSError: if it cannot be read or written.
            UserError: if another process uses it, or it is not a part file.
        """
        os.stat(self.path.parent)  # the lock would create it
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.path}: another command is writing it; choose another --output") from None
        try:
            self._file = open(self.path, "a+b")
        except OSError:
            self._unlock()
            raise
        try:
            self._read_offsets()
        except BaseException:
            self._close(remove=not os.path.getsize(self.path))
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, and remove it if it is not needed."""
        self._close(remove=self.complete or not self.num_done)

    @property
    def num_done(self) -> int:
        """Number of files that have a prediction."""
        return int((self._offsets != NOT_DONE).sum())

    def remaining(self) -> list[int]:
        """Return the indices of the files that have no prediction."""
        return [int(index) for index in np.flatnonzero(self._offsets == NOT_DONE)]

    def append(self, indices: Sequence[int], predictions: Sequence[Prediction]) -> None:
        """Write the predictions for a batch of files.

        Args:
            indices: of the files.
            predictions: for these.

        Raises:
            UserError: if they cannot be written.
        """
        lines = []
        for prediction in predictions:
            path = os.path.join(self._folder, prediction.file.path)
            values = (prediction.label, prediction.probabilities, prediction.pages, prediction.problem)
            lines.append(json.dumps([path, *values]).encode() + b"\n")
        try:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(b"".join(lines) + b"\n")
            self._file.flush()
        except OSError as error:
            done = f"{self.num_done:,} of {len(self.files):,} files are done"
            reason = f"cannot be written ({error.strerror})"
            raise UserError(f"{self.path}: {reason}; {done}, and the same command continues") from None
        self._offsets[indices] = start + np.cumsum([0, *map(len, lines[:-1])])

    def read(self) -> Iterator[Prediction]:
        """Yield the predictions in the order of ``files``, all of which must be done."""
        for file, offset in zip(self.files, self._offsets, strict=True):
            self._file.seek(int(offset))
            _, *values = json.loads(self._file.readline())
            yield Prediction(file, *values)

    def _close(self, remove: bool) -> None:
        with suppress(OSError):  # a full disk, which ``append`` has reported
            self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _read_offsets(self) -> None:
        self._file.seek(0)
        header = self._file.readline()
        if header and not header.startswith(MAGIC):
            raise UserError(f"{self.path}: was not written by this command; remove it or choose another --output")
        if header != self._header:
            if header:
                other = "model" if header.startswith(FORMAT) else "version of this program"
                print(f"starting again: {self.path} was written with another {other}")
            self._file.truncate(0)
            self._file.write(self._header)
            self._file.flush()
            return
        done: dict[str, int] = {}
        batch: dict[str, int] = {}
        offset = end = len(header)
        for line in self._file:
            try:
                if line != b"\n":
                    batch[json.loads(line)[0]] = offset
            except ValueError:  # a line that was not written completely
                break
            offset += len(line)
            if line == b"\n":
                done |= batch
                batch, end = {}, offset
        self._file.truncate(end)
        for index, file in enumerate(self.files):
            self._offsets[index] = done.get(os.path.join(self._folder, file.path), NOT_DONE)
