"""Atomic writes, locks, tensor files with a checksum, and text in CSV files."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mixmatch.errors import UserError
from mixmatch.output import log

HEADER = "mixmatch"  # the one entry of the metadata: the library writes several in any order
FORMAT_VERSION = 2


class DamagedFile(Exception):
    """A tensor file that is truncated, altered, of another kind or of an unknown version."""


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError on writing ``path`` (disk full, no permission, ...) into a UserError."""
    try:
        yield
    except BrokenPipeError:  # of what is printed: the command ends silently
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def lock_file(path: Path, does: str) -> Iterator[None]:
    """Let one process at a time into a block, and print a line if another is in it.

    Args:
        path: of the lock file, in an existing folder.
        does: what the other process does, for the line.

    Raises:
        OSError: if the file cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the others of a run wait for the first
            log.info(f"{path.parent}: waiting for another process, which {does}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that readers find the old content or the new, never a part of it.

    Raises:
        UserError: if it cannot be written; ``path`` is then unchanged.
    """
    with explain_os_errors(path), open_atomically(path) as file:
        file.write(data)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is renamed to ``path`` when it is complete; see ``write_atomically``.

    Raises:
        OSError: if it cannot be written; ``path`` is then unchanged, as after any other exception.
        UserError: if ``path`` exists and is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; use another name")
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON-able ``meta`` to one safetensors file, with a checksum of both.

    Raises:
        UserError: if it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    header = {"version": FORMAT_VERSION, "meta": meta, "sha256": checksum(tensors, json.dumps(meta))}
    try:
        data = save(tensors, {HEADER: json.dumps(header)})
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be saved ({error}); evaluate less often (train.eval_every)") from None
    write_atomically(path, data)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``save_tensors``, on the CPU. It holds numbers and JSON only: no code in it can run.

    Raises:
        DamagedFile: if it is not exactly what was written.
        OSError: if it cannot be opened.
    """
    os.stat(path)  # the library's error does not say why
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (SafetensorError, ValueError) as error:
        raise DamagedFile(f"is not a safetensors file ({error})") from None
    version, meta = header.get("version"), header.get("meta")
    if version != FORMAT_VERSION:
        raise DamagedFile(f"has format version {version}, this program reads {FORMAT_VERSION}")
    if header.get("sha256") != checksum(tensors, json.dumps(meta)):
        raise DamagedFile("fails its checksum")
    return tensors, meta


def checksum(tensors: dict[str, Tensor], meta: str) -> str:
    """Return a digest of tensors on the CPU, in their order, and of a text."""
    digest = hashlib.sha256(meta.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets evaluate CSV cells that start so


def csv_text(text: str) -> str:
    """Return text for a CSV cell: valid UTF-8, with an apostrophe before what spreadsheets would evaluate."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(FORMULA) else text


def from_csv_text(cell: str) -> str:
    """Return the text of a cell that ``csv_text`` wrote."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def csv_path(path: str) -> str:
    """Return a path for a CSV cell: still that path, with ``./`` before what spreadsheets would evaluate."""
    return csv_text(f"./{path}" if path.startswith(FORMULA) else path)
