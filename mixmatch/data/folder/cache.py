"""The cache of decoded pictures: their pixels in one file, and an index of them in SQLite. It grows with the folder.

Pixels are on disk before the index names them, so that a cache is whole whenever its process is killed. One process
writes at a time; others read meanwhile. A picture is decoded again if its path, size, times or inode change. Pixels of
files that are gone are dropped when they are more than half of all.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixmatch.data.dataset import Decoding
from mixmatch.data.folder.decode import THUMBNAIL_SIZE, Picture, PictureInfo
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.data.stored_images import DIGEST_BYTES, StoredImages, digest
from mixmatch.files import explain_os_errors, lock_file

VERSION = 1  # of the files, and of what decoding computes
CACHE_FOLDER = ".mixmatch-cache"
NAME = re.compile(r"\d+px-[0-9a-f]{8}")
CHANNELS = 3
INDEX_BYTES = 500  # of a picture in the index, about
TABLES = """
begin;
create table if not exists pictures (
    row integer primary key, path blob unique not null, state text not null, digest blob not null,
    thumbnail blob not null, info text not null
);
create table if not exists pixels (number integer not null);
insert into pixels select 0 where not exists (select * from pixels);
commit;
"""


class Found(NamedTuple):
    """What a cache knows of files.

    Attributes:
        rows: (n,) int64, where the pixels of each file are; -1 if it has to be decoded.
        digests: (n, DIGEST_BYTES) uint8, of the pixels.
        thumbnails: (n, THUMBNAIL_SIZE, THUMBNAIL_SIZE) uint8.
        infos: of each file; None if it has to be decoded.
        images: of all files, readable where they need not be decoded; None without a cache.
    """

    rows: NDArray[np.int64]
    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]
    infos: list[PictureInfo | None]
    images: StoredImages | None = None

    @classmethod
    def nothing(cls, count: int) -> "Found":
        """Return what is known of ``count`` files without a cache."""
        thumbnails = np.zeros((count, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
        return cls(np.full(count, -1), np.zeros((count, DIGEST_BYTES), np.uint8), thumbnails, [None] * count)

    @property
    def missing(self) -> NDArray[np.int64]:
        """Indices of the files that have to be decoded."""
        return np.flatnonzero(self.rows < 0)


class PictureCache:
    """The decoded pictures of a folder, of one size and one way of decoding."""

    def __init__(self, folder: Path, size: int, options: Decoding) -> None:
        """Name the cache in ``folder``; nothing is read or written."""
        self.folder, self.size, self.row_bytes = folder, size, size * size * CHANNELS
        self.name = f"{size}px-{hashlib.sha256(f'{VERSION} {options}'.encode()).hexdigest()[:8]}"
        self.index = folder / f"{self.name}.sqlite"

    def find(self, paths: Sequence[bytes], states: Sequence[str]) -> Found:
        """Return what is known of files.

        Args:
            paths: below the folder of photographs.
            states: what tells whether a file has changed since it was decoded.
        """
        found, numbers = Found.nothing(len(paths)), {path: number for number, path in enumerate(paths)}
        infos: dict[str, PictureInfo] = {}  # many pictures share few
        try:
            with closing(self._connect()) as database:
                database.execute("begin")  # until the file of the rows is open: it may be replaced after that
                pixels = self._pixel_file(database)
                num_rows = pixels.stat().st_size // self.row_bytes
                for row, path, state, hashed, thumbnail, info in database.execute("select * from pictures"):
                    number = numbers.get(path)
                    if number is None or states[number] != state or row >= num_rows:
                        continue
                    found.rows[number] = row
                    found.digests[number] = np.frombuffer(hashed, np.uint8)
                    found.thumbnails[number] = np.frombuffer(thumbnail, np.uint8).reshape(THUMBNAIL_SIZE, -1)
                    if info not in infos:
                        kind, size, *rest = json.loads(info)
                        infos[info] = PictureInfo(kind, tuple(size), *rest)
                    found.infos[number] = infos[info]
                images = self.open_images(pixels, found)
        except (sqlite3.Error, OSError):  # there is none, or it is damaged
            return Found.nothing(len(paths))
        return found._replace(images=images)

    def check_disk(self, count: int) -> str:
        """Return what ``count`` more pictures need, for a message. Raise OSError if there is no room for them."""
        needed, free = count * (self.row_bytes + INDEX_BYTES), shutil.disk_usage(self.folder).free
        text = f"the cache needs {needed / 1e9:,.1f} GB in {self.folder}, where {free / 1e9:,.1f} GB are free"
        if needed > free:
            raise OSError(text)
        return text

    @contextmanager
    def lock(self, found: Found) -> Iterator["CacheWriter"]:
        """Let this process alone write, and wait for one that does. An index of which nothing was found is checked.

        Raises:
            OSError: if the cache cannot be written, here or in the block.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with lock_file(self.folder / f"{self.name}.lock", "decodes pictures"):
                if found.images is None and self._is_damaged():
                    _remove(file for name, file in _cache_files(self.folder) if name == self.name)
                with closing(sqlite3.connect(self.index, timeout=60)) as database:
                    database.executescript(TABLES)
                    self._remove_old_pixels(database)
                    with open(self._pixel_file(database), "ab", buffering=0) as pixels:
                        yield CacheWriter(self, database, pixels)
                    self._drop_unused(database)
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error)) from None

    def open_images(self, pixels: Path, found: Found) -> StoredImages:
        """Return the images of all files, of which those that were found can be read."""
        return StoredImages(pixels, found.rows, (self.size, self.size, CHANNELS), found.digests)

    def _connect(self) -> sqlite3.Connection:
        """Open the index to read it."""
        return sqlite3.connect(f"{self.index.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)

    def _is_damaged(self) -> bool:
        try:
            with closing(self._connect()) as database:
                (result,) = database.execute("pragma quick_check(1)").fetchone()
                return bool(result != "ok")
        except sqlite3.OperationalError:  # there is none
            return False
        except sqlite3.DatabaseError:
            return True

    def _drop_unused(self, database: sqlite3.Connection) -> None:
        """Copy the pixels that are in use to a new file, if they are less than half. Readers keep the old one open."""
        old = self._pixel_file(database)
        (count,) = database.execute("select count(*) from pictures").fetchone()
        num_bytes = count * self.row_bytes
        if old.stat().st_size <= 2 * num_bytes or shutil.disk_usage(self.folder).free < num_bytes:
            return
        with database:  # a transaction
            database.execute("update pixels set number = number + 1")
            with open(old, "rb") as source, open(self._pixel_file(database), "wb") as target:
                rows = database.execute("select row from pictures order by row").fetchall()
                for new_row, (row,) in enumerate(rows):
                    source.seek(row * self.row_bytes)
                    target.write(source.read(self.row_bytes))
                    database.execute("update pictures set row = ? where row = ?", (new_row, row))
                target.flush()
                os.fsync(target.fileno())
        self._remove_old_pixels(database)

    def _pixel_file(self, database: sqlite3.Connection) -> Path:
        (number,) = database.execute("select number from pixels").fetchone()
        return self.folder / f"{self.name}-{number}.pixels"

    def _remove_old_pixels(self, database: sqlite3.Connection) -> None:
        """Remove all pixel files but the current one."""
        current = self._pixel_file(database)
        _remove(file for file in self.folder.glob(f"{self.name}-*.pixels") if file != current)


class CacheWriter:
    """Changes a cache that is locked. Methods raise OSError or sqlite3.Error, which ``PictureCache.lock`` converts."""

    def __init__(self, cache: PictureCache, database: sqlite3.Connection, pixels: BinaryIO) -> None:
        self._cache, self._database, self._pixels, self._row_bytes = cache, database, pixels, cache.row_bytes
        # No row is written twice, even if no file has it any more: a run that is under way may read it.
        self._next_row = pixels.tell() // self._row_bytes
        pixels.truncate(self._next_row * self._row_bytes)
        with database:  # a transaction
            database.execute("delete from pictures where row >= ?", (self._next_row,))  # the file was cut short

    def add(self, found: Found, pictures: Sequence[tuple[int, bytes, str, Picture]]) -> None:
        """Add pictures to the cache and to what was found in it, each with number, path and state of its file."""
        try:
            for *_, picture in pictures:  # one by one: a batch of large pictures is not copied
                if self._pixels.write(picture.pixels.tobytes()) < self._row_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._pixels.fileno())
        except OSError:
            self._pixels.truncate(self._next_row * self._row_bytes)
            raise
        entries = []
        for row, (number, path, state, picture) in enumerate(pictures, self._next_row):
            hashed, thumbnail = digest(picture.pixels), picture.thumbnail
            entries.append((row, path, state, hashed, thumbnail.tobytes(), json.dumps(picture.info)))
            found.rows[number], found.digests[number] = row, np.frombuffer(hashed, np.uint8)
            found.thumbnails[number], found.infos[number] = thumbnail, picture.info
        with self._database:  # a transaction
            self._database.executemany("insert or replace into pictures values (?, ?, ?, ?, ?, ?)", entries)
        self._next_row += len(entries)

    def open_images(self, found: Found) -> StoredImages:
        """Return the images of all files, also of those that were added."""
        return self._cache.open_images(Path(self._pixels.name), found)

    def forget_missing(self, root: Path, present: set[bytes]) -> None:
        """Forget the files that are neither ``present`` nor anywhere else below ``root``."""
        paths = [path for (path,) in self._database.execute("select path from pictures") if path not in present]
        gone = [(path,) for path in paths if not os.path.lexists(root / os.fsdecode(path))]
        with self._database:
            self._database.executemany("delete from pictures where path = ?", gone)


def cache_folder(settings: FolderSettings) -> Path | None:
    """Return where the decoded pictures of ``data.root`` are kept; None if they are not."""
    root = Path(settings.root)
    if not settings.cache:
        return None
    if settings.cache is True:
        return root / CACHE_FOLDER
    place = os.fsencode(root.resolve())
    return Path(settings.cache) / f"{settings.display_name()}-{hashlib.sha256(place).hexdigest()[:8]}"


def list_caches(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of all caches in a folder, by name."""
    sizes: dict[str, int] = {}
    for name, file in _cache_files(folder):
        sizes[name] = sizes.get(name, 0) + file.stat().st_size
    return sizes


def remove_caches(folder: Path) -> None:
    """Remove all caches in a folder, so that pictures are decoded again. Processes that decode are waited for.

    Raises:
        UserError: if they cannot be removed.
    """
    with explain_os_errors(folder):
        for name, file in _cache_files(folder):
            with lock_file(folder / f"{name}.lock", "decodes pictures"):
                file.unlink(missing_ok=True)


def file_state(file: Path) -> str:
    """Return size, times and inode of a file; of one that does not exist, why."""
    try:
        status = file.stat()
    except OSError as error:  # such as a dangling link, which is unreadable
        return str(error.errno)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _cache_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files of all caches in a folder, but not their locks, each with the name of the cache."""
    matches = ((NAME.match(file.name), file) for file in folder.glob("*px-*"))
    return [(match[0], file) for match, file in matches if match and file.suffix != ".lock"]


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
