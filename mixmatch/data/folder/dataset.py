"""A folder of photographs as a data set, and the cache of its decoded pictures."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixmatch.data.dataset import ImageData, check_memory
from mixmatch.data.folder.decode import HAS_HEIF, Unreadable, decode_all
from mixmatch.data.folder.index import FolderIndex, index_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, load_tensors, save_tensors
from mixmatch.output import tqdm

DEFAULT_SIZE = 32


class DecodedPictures(NamedTuple):
    """Pictures of the files of an index.

    Attributes:
        images: (n, size, size, 3) uint8, black if a file cannot be read.
        unreadable: reason for each file that cannot be read, by index.
        several_pages: indices of the files of which only the first page is used.
    """

    images: Tensor
    unreadable: dict[int, str]
    several_pages: list[int]


def read_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read the pictures below ``settings.root`` as squares of ``settings.image_size`` pixels.

    Raises:
        UserError: if folders are missing or contradictory, files are not pictures, or they do not fit into memory.
    """
    index = index_folder(Path(settings.root), settings.labels)
    if index.problems:
        more = len(index.problems) - 1
        raise UserError(index.problems[0] + (f" (and {more} more problems; --check lists them)" if more else ""))
    decoded, notes = read_pictures(index, settings, device, quiet)
    files, unreadable = index.files, decoded.unreadable
    if unreadable:
        examples = list_examples([f"{files[i]}: {reason}" for i, reason in unreadable.items()])
        if not settings.skip_unreadable:
            raise UserError(
                f"{index.root}: {count_files(len(unreadable))} cannot be read as pictures: {examples}; repair or "
                "remove them, or set data.skip_unreadable=true"
            )
        notes.append(f"skipped {count_files(len(unreadable))} that cannot be read: {examples}")
    if index.unused_files:
        examples = list_examples([index.relative_path(path) for path in index.unused_files])
        notes.append(f"ignored in {index.root}: {examples}")
    if decoded.several_pages:
        examples = list_examples([index.relative_path(files[i]) for i in decoded.several_pages])
        notes.append(f"only the first page is used of {examples}")
    kept = [i for i in range(len(files)) if i not in unreadable]
    num_train = sum(i < index.num_train for i in kept)
    labels = torch.tensor(index.labels)[kept]
    images = decoded.images[kept] if unreadable else decoded.images
    for number, name in enumerate(index.classes):
        if number not in labels[:num_train]:
            raise UserError(f"{index.root}: class {name!r} has no readable picture; add some")
    has_test = num_train < len(kept)
    groups = [index.groups[i] for i in kept[:num_train]]
    return ImageData(
        "folder",
        index.classes,
        images[:num_train],
        labels[:num_train],
        images[num_train:] if has_test else None,
        labels[num_train:] if has_test else None,
        flip=True,
        fit=settings.fit,
        files=[index.relative_path(files[i]) for i in kept[:num_train]],
        groups=groups if any(groups) else None,
        notes=notes,
    )


def count_files(count: int) -> str:
    """Return ``1 file``, ``2 files`` and so on."""
    return f"{count:,} file{'' if count == 1 else 's'}"


def list_examples(names: Sequence[str], count: int = 5) -> str:
    """Return the first ``count`` names, and the number of the others."""
    more = f"; and {len(names) - count:,} more" if len(names) > count else ""
    return "; ".join(names[:count]) + more


def read_pictures(
    index: FolderIndex, settings: FolderSettings, device: torch.device, quiet: bool
) -> tuple[DecodedPictures, list[str]]:
    """Decode the pictures of an index, or read them from the cache if no file has changed; with notes to print.

    Raises:
        UserError: if they do not fit into the memory of this machine or of ``device``.
    """
    files, size = index.files, settings.image_size or DEFAULT_SIZE
    check_memory(len(files) * size * size * 3, device)
    key = _cache_key(index, f"{size} {settings.fit} {HAS_HEIF}")
    cache = index.root / ".mixmatch-cache" / f"{size}px.safetensors"
    cached = _read_cache(cache, key)
    if cached is not None:
        return cached, []
    images = torch.zeros(len(files), size, size, 3, dtype=torch.uint8)
    unreadable: dict[int, str] = {}
    several_pages: list[int] = []
    pictures = decode_all(files, size, 3, settings.fit)
    progress = tqdm(pictures, "decoding images", len(files), disable=quiet, leave=False, unit="")
    for number, (_, picture) in enumerate(progress):
        if isinstance(picture, Unreadable):
            unreadable[number] = str(picture)
        else:
            images[number] = torch.from_numpy(picture.pixels)
            if picture.pages > 1:
                several_pages.append(number)
    decoded = DecodedPictures(images, unreadable, several_pages)
    return decoded, _write_cache(cache, key, decoded)


def _cache_key(index: FolderIndex, options: str) -> str:
    """Return a hash of ``options`` and of the path, size and times of every file."""
    digest = hashlib.sha256(options.encode())
    for file in index.files:
        try:
            status = file.stat()
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except OSError as error:  # such as a dangling link, which is unreadable
            state = str(error.errno)
        digest.update(os.fsencode(file.relative_to(index.root)) + f"\0{state}\0".encode())
    return digest.hexdigest()


def _read_cache(cache: Path, key: str) -> DecodedPictures | None:
    try:
        tensors, meta = load_tensors(cache)
    except (OSError, DamagedFile):
        return None
    if meta.get("key") != key:
        return None
    unreadable = {int(number): reason for number, reason in meta["unreadable"].items()}
    return DecodedPictures(tensors["images"], unreadable, meta["several_pages"])


def _write_cache(cache: Path, key: str, decoded: DecodedPictures) -> list[str]:
    """Write the cache, and return a note if that fails."""
    meta = {"key": key, "unreadable": decoded.unreadable, "several_pages": decoded.several_pages}
    try:
        # Writing needs the memory of the images once more.
        check_memory(decoded.images.numel(), torch.device("cpu"))
        cache.parent.mkdir(exist_ok=True)
        save_tensors(cache, {"images": decoded.images}, meta)
    except (OSError, UserError) as error:
        return [f"decoded images are not cached: {error}"]
    return []
