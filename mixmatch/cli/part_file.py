"""The predictions of a command that is not complete, in SQLite. If it is interrupted, the same command continues."""

import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mixmatch.data.folder.cache import file_state
from mixmatch.errors import UserError
from mixmatch.output import log

FORMAT = 2  # other columns need another number
TABLE = """
create table if not exists predictions (model text, file blob, prediction text, primary key (model, file)) without rowid
"""
UNREADABLE = -1  # instead of a label


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


class PartFile:
    """A part file that no other process uses.

    When the block ends without an exception, its predictions are removed, and so is a file without others.
    """

    def __init__(self, path: Path, files: Sequence[ListedFile], model: str) -> None:
        """Prepare to open a part file.

        Args:
            path: of the part file.
            files: to classify. Former predictions are matched by absolute path, and not used if the file has changed.
            model: its fingerprint. Predictions of another one are not used.
        """
        self.path, self.files = path, files
        self._model = f"format {FORMAT}, {model}"
        self._keys = [_key(file.path) for file in files]
        self._done: NDArray[np.bool_] = np.zeros(len(files), bool)

    def __enter__(self) -> Self:
        """Open the file and find the predictions in it.

        Raises:
            OSError: if it cannot be read or written.
            UserError: if another process uses it, or it is not a part file.
        """
        os.stat(self.path.parent)  # SQLite's error does not say that the folder is missing
        try:
            self._database = sqlite3.connect(self.path, timeout=0)
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error)) from None
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        """Close the file, and remove it if it is not needed."""
        try:
            with suppress(sqlite3.Error):  # a full disk: the file stays as it is
                if exception is None:
                    self._remove_done()
                elif not self._database.execute("select 1 from predictions limit 1").fetchone():
                    self.path.unlink(missing_ok=True)
        finally:
            self._database.close()

    @property
    def num_done(self) -> int:
        """Number of files that have a prediction."""
        return int(self._done.sum())

    def remaining(self) -> list[int]:
        """Return the indices of the files that have no prediction."""
        return [int(index) for index in np.flatnonzero(~self._done)]

    def append(self, indices: Sequence[int], predictions: Sequence[Prediction]) -> None:
        """Write the predictions for a batch of files, all or none.

        Args:
            indices: of the files.
            predictions: for these.

        Raises:
            UserError: if they cannot be written.
        """
        rows = [
            (self._model, self._keys[index], json.dumps([p.label, p.probabilities, p.pages, p.problem]))
            for index, p in zip(indices, predictions, strict=True)
        ]
        try:
            with self._database:  # a transaction
                self._database.executemany("insert or replace into predictions values (?, ?, ?)", rows)
        except sqlite3.Error as error:
            done = f"{self.num_done:,} of {len(self.files):,} files are done"
            raise UserError(
                f"{self.path}: cannot be written ({error}); {done}, and the same command continues"
            ) from None
        self._done[indices] = True

    def read(self) -> Iterator[Prediction]:
        """Yield the predictions in the order of ``files``, all of which must be done."""
        query = "select prediction from predictions where model = ? and file = ?"
        for file, key in zip(self.files, self._keys, strict=True):
            (prediction,) = self._database.execute(query, (self._model, key)).fetchone()
            yield Prediction(file, *json.loads(prediction))

    def _remove_done(self) -> None:
        """Remove the predictions for ``files``, and the file unless it has some for others, as they are now."""
        others = {key for (key,) in self._database.execute("select file from predictions")}.difference(self._keys)
        others = {key for key in others if key == _key(os.fsdecode(key.partition(b"\0")[0]))}
        if not others:
            self.path.unlink(missing_ok=True)
            return
        with self._database:
            self._database.executemany("delete from predictions where file = ?", [(key,) for key in self._keys])
        count = f"{len(others):,} predictions of an interrupted command"
        log.info(f"note: {self.path} keeps {count}; repeat that command, or remove this file")

    def _open(self) -> None:
        try:
            self._database.execute("pragma locking_mode = exclusive")  # until it is closed
            self._database.execute("begin exclusive")
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise UserError(f"{self.path}: another command is writing it; choose another --output") from None
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise UserError(
                    f"{self.path}: was not written by this command; remove it or choose another --output"
                ) from None
            raise
        self._database.execute(TABLE)
        self._database.commit()
        rows = self._database.execute("select file from predictions where model = ?", (self._model,))
        done = {key for (key,) in rows}
        self._done[:] = [key in done for key in self._keys]


def _key(path: str) -> bytes:
    """Return the absolute path of a file and its state."""
    return os.fsencode(f"{os.path.abspath(path)}\0{file_state(Path(path))}")
