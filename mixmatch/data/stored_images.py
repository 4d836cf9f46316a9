"""Images in a file, for data sets that are larger than memory, and reading ahead of what needs them."""

import copy
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixmatch.errors import UserError, describe_error

T = TypeVar("T")
R = TypeVar("R")

DIGEST_BYTES = 16
READ_AHEAD = 2  # batches that wait to be used
BYTES_AT_ONCE = 2**26  # of a file that is copied to a device


class StoredImages:
    """Images in a file of raw pixels. An index reads them, as of a tensor in memory: ``images[index]``.

    The file is read, not mapped: a file that was cut short ends in an error instead of the process, and pages that the
    system caches do not count as memory of the process. Several processes share them.
    """

    dtype, device = torch.uint8, torch.device("cpu")

    def __init__(
        self, path: Path, rows: NDArray[np.int64], image_shape: tuple[int, int, int], digests: NDArray[np.uint8]
    ) -> None:
        """Open the file, which may be removed afterwards.

        Args:
            path: the file: row after row, each of them an image.
            rows: (n,) of each image.
            image_shape: (h, w, c).
            digests: (n, DIGEST_BYTES), see ``digest``.

        Raises:
            OSError: if it cannot be opened.
        """
        self.path, self.rows, self.digests = path, rows, digests
        self.shape = (len(rows), *image_shape)
        self._file = _File(path)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Read images.

        Args:
            index: (m,) int64, or a slice.

        Returns:
            (m, h, w, c) uint8, on the CPU.

        Raises:
            UserError: if the file cannot be read.
        """
        rows = self.rows[index if isinstance(index, slice) else index.numpy()]
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        self._file.read_rows(rows.tolist(), images.numpy().reshape(len(rows), -1))
        return images

    def select(self, index: Sequence[int]) -> "StoredImages":
        """Return some of the images, without reading them."""
        selected = copy.copy(self)
        selected.rows, selected.digests = self.rows[index], self.digests[index]
        selected.shape = (len(selected.rows), *self.shape[1:])
        return selected


class _File:
    """An open file that threads can read, and that is closed with its last user."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()

    def read_rows(self, rows: list[int], target: NDArray[np.uint8]) -> None:
        """Read rows of the file into those of ``target``, (len(rows), bytes). Raise UserError if that fails."""
        size = target.shape[1]
        try:
            for place, row in zip(target, rows, strict=True):
                content = os.pread(self._stream.fileno(), size, row * size)
                if len(content) < size:
                    raise OSError("it was cut short")
                place[:] = np.frombuffer(content, np.uint8)
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be read ({describe_error(error)}); --refresh-cache decodes the pictures again"
            ) from None


Images = Tensor | StoredImages


def digest(pixels: NDArray[np.uint8]) -> bytes:
    """Return a hash of an image, ``DIGEST_BYTES`` long."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=DIGEST_BYTES).digest()


def digests(images: Images) -> bytes:
    """Return the hashes of all images, one after the other."""
    if isinstance(images, StoredImages):
        return images.digests.tobytes()
    return b"".join(map(digest, images.numpy()))


def select(images: Images, index: Sequence[int]) -> Images:
    """Return some images; those in a file are not read, and a range of those in memory is not copied."""
    if isinstance(images, StoredImages):
        return images.select(index)
    return images[index.start : index.stop] if isinstance(index, range) else images[index]


def to_memory(images: Images, device: torch.device) -> Tensor:
    """Return all images as a tensor on ``device``; those in a file are read in parts, without a second copy."""
    if not isinstance(images, StoredImages):
        return images.to(device)
    copy = torch.empty(images.shape, dtype=torch.uint8, device=device)
    count = max(1, BYTES_AT_ONCE // int(np.prod(images.shape[1:])))
    starts = range(0, len(images), count)
    for start, part in zip(starts, read_ahead(lambda i: images[i : i + count], starts), strict=True):
        copy[start : start + count] = part
    return copy


def read_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` for each item, computed in a thread while the caller works with those before."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
