"""Data sets that torchvision downloads, checks and reads: the room they need, and what goes wrong, in a line."""

import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from mixmatch.data.dataset import DataSettings, check_memory
from mixmatch.errors import UserError, describe_error

# What reading, unpacking and downloading raise; URLError is an OSError.
FAILURES = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    AssertionError,
    KeyError,
    TypeError,
    zlib.error,
    struct.error,
    tarfile.TarError,
    pickle.UnpicklingError,
)


def check_room(images: int, side: int, channels: int, settings: DataSettings, device: torch.device) -> None:
    """See that so many images fit into memory, before they are downloaded.

    Here they are held twice for a moment, as the files have them and as ``ImageData`` does; on ``device`` resized.

    Raises:
        UserError: if they don't.
    """
    size = settings.image_size or side
    here = 2 * images * side * side * channels
    check_memory(here, torch.device("cpu"), f"to read {settings.dataset} takes", "use a machine with more")
    check_memory(images * size * size * channels, device)


@contextmanager
def from_torchvision(title: str, root: Path, place: Path, files: str, advice: str = "") -> Iterator[None]:
    """Let torchvision read a data set below ``root``, and explain what it raises.

    Args:
        title: of the data set.
        root: the folder of downloads; made if it is not there.
        place: what is there of the data set once it has been downloaded.
        files: what a person can put there who has no network, with checksums.
        advice: what else they can do.

    Raises:
        UserError: if it is not there, or damaged, and cannot be had.
    """
    try:
        # It unpacks no archive whose checksum differs: none with members that land elsewhere.
        with redirect_stdout(None):
            root.mkdir(parents=True, exist_ok=True)
            yield
    except FAILURES as error:
        there = any(place.iterdir()) if place.is_dir() else place.exists()
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or describe_error(error)
        raise UserError(
            f"{place}: {title} {'is damaged' if there else 'is not there'} and could not be downloaded ({reason}); "
            f"put {files}{advice}"
        ) from None
