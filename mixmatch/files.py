"""Writing files so that a crash at any moment leaves the old one or the new one, and reading them with distrust."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mixmatch.errors import UserError

FORMAT_VERSION = 1


class DamagedFile(Exception):
    """A tensor file that is truncated, altered, of another kind or of a version not known here."""


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError on writing or making ``path`` (disk full, no permission, ...) into a UserError of one line."""
    try:
        yield
    except (
        BrokenPipeError
    ):  # path is a pipe, such as /dev/stdout, and whoever read it is gone: run_command ends silently
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); mend that and run again") from None


def read_file(path: Path) -> bytes:
    """Return the contents of a regular file; what is none, such as a pipe, could keep a reader waiting for ever.

    Raises:
        OSError: if it is none, or cannot be read.
    """
    check_regular(path)
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Raise OSError if a path is not that of a regular file."""
    try:
        kind = os.stat(path).st_mode
    except ValueError as error:  # a path with a NUL in it
        raise OSError(errno.EINVAL, str(error)) from None
    if stat.S_ISDIR(kind):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "is no regular file")


def write_atomically(path: Path, data: bytes, folder: int | None = None) -> None:
    """Write ``data`` to ``path`` so that whoever looks finds the old content or the new, never a part of it.

    Args:
        path: of the file.
        data: its content.
        folder: a descriptor of the folder of ``path``: it is written there, wherever that folder is by now.

    Raises:
        UserError: if it cannot be written; ``path`` is then as it was.
    """
    with explain_os_errors(path), open_atomically(path, folder) as file:
        file.write(data)


def open_in(folder: int | None, path: Path, mode: str, buffering: int = -1) -> BinaryIO:
    """Open a binary file, in the folder of the descriptor ``folder`` if there is one, wherever that is by now."""
    name = path if folder is None else path.name
    return open(name, mode, buffering, opener=lambda name, flags: os.open(name, flags, 0o666, dir_fd=folder))


@contextmanager
def open_atomically(path: Path, folder: int | None = None) -> Iterator[BinaryIO]:
    """Open a file to write that takes its name when it is whole; see ``write_atomically``.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was, as after any other exception.
        UserError: if there is something at ``path`` that is no regular file.
    """
    if folder is None:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file; give another name")
        path = Path(os.path.realpath(path))  # a link stays one
    place = path.parent if folder is None else Path()  # names are relative to a descriptor
    name, temporary = place / path.name, place / f".{path.name[:40]}.{os.getpid()}.tmp"
    try:
        with open_in(folder, temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        if folder is None:
            _sync_folder(path.parent)
        else:
            os.fsync(folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], folder: int | None = None) -> None:
    """Write tensors and JSON-able ``meta`` to one safetensors file, with a checksum over all of it.

    ``folder`` as for ``write_atomically``.

    Raises:
        UserError: if it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    text = json.dumps(meta)
    header = {"version": str(FORMAT_VERSION), "meta": text, "sha256": _checksum(tensors, text)}
    write_atomically(path, save(tensors, header), folder)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``save_tensors``, on the CPU. No code in it can run: it holds numbers and JSON only.

    Raises:
        DamagedFile: if it is not exactly what was written.
        OSError: if it cannot be opened.
    """
    check_regular(path)
    with open(path, "rb"):  # safetensors does not tell a missing file from a forbidden one
        pass
    try:
        if os.fsencode(path).decode("utf-8", "replace") != str(path):  # safetensors opens no such names
            data = path.read_bytes()
            tensors = dict(sorted(load(data).items()))
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        else:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFile(f"is no safetensors file ({error})") from None
    version = header.get("version")
    if version != str(FORMAT_VERSION):
        raise DamagedFile(f"has format version {version!r}, this program reads {FORMAT_VERSION}")
    text = header.get("meta", "")
    if header.get("sha256") != _checksum(tensors, text):
        raise DamagedFile("fails its checksum")
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise DamagedFile("says nothing of its contents that can be read")
    return tensors, meta


def _checksum(tensors: dict[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; POSIX only, elsewhere folders cannot be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell of CSV that begins so is computed by spreadsheets


def csv_text(text: str) -> str:
    """Return text as it may stand in a cell of CSV: UTF-8, and with an apostrophe before what would be computed."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(FORMULA) else text


def csv_path(path: str) -> str:
    """Return a path as it may stand in a cell of CSV: still that path, begun with ``./`` if it would be computed."""
    return csv_text(f"./{path}" if path.startswith(FORMULA) else path)
