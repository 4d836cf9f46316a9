"""A folder of photographs as a data set, and the cache of its decoded pictures."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixmatch.data.dataset import ImageData
from mixmatch.data.folder.decode import HAS_HEIF, THUMBNAIL_SIZE, PictureInfo, Unreadable, decode_all
from mixmatch.data.folder.index import FolderIndex, index_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.data.memory import check_memory
from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, explain_os_errors, load_tensors, save_tensors
from mixmatch.output import tqdm

DEFAULT_SIZE = 32
CACHE_FOLDER = ".mixmatch-cache"


class DecodedPictures(NamedTuple):
    """Pictures of the files of an index.

    Attributes:
        images: (n, size, size, 3) uint8, of the files that can be read, in their order.
        thumbnails: (n, THUMBNAIL_SIZE, THUMBNAIL_SIZE) uint8, gray.
        infos: of each file that can be read, by index.
        unreadable: reason for each other file, by index.
    """

    images: Tensor
    thumbnails: Tensor
    infos: dict[int, PictureInfo]
    unreadable: dict[int, str]


def read_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read the pictures below ``settings.root`` as squares of ``settings.image_size`` pixels.

    Raises:
        UserError: if folders are missing or contradictory, files are not pictures, or they do not fit into memory.
    """
    index = index_folder(Path(settings.root), settings.labels)
    if index.problems:
        more = len(index.problems) - 1
        raise UserError(index.problems[0] + (f" (and {more} more problems; --check lists them)" if more else ""))
    decoded, decoding_notes = read_pictures(index, settings, device, quiet)
    notes = [*index.notes, *decoding_notes]
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
    kept = [*decoded.infos]
    several_pages = [index.relative_path(files[i]) for i in kept if decoded.infos[i].pages > 1]
    if several_pages:
        notes.append(f"only the first page is used of {list_examples(several_pages)}")
    remarks = [f"{files[i]}: {note}" for i in kept for note in decoded.infos[i].notes]
    if remarks:
        notes.append(list_examples(remarks, 20))
    num_train = sum(i < index.num_train for i in kept)
    labels = torch.tensor(index.labels)[kept]
    images = decoded.images
    for number, name in enumerate(index.classes):
        if number not in labels[:num_train]:
            raise UserError(f"{index.root}: class {name!r} has no readable picture; add some")
    has_test = num_train < len(kept)
    groups = [index.groups[i] for i in kept[:num_train]]
    first = index.num_train - index.num_validation
    validation = [number for number, i in enumerate(kept[:num_train]) if i >= first]
    return ImageData(
        "folder",
        index.classes,
        images[:num_train],
        labels[:num_train],
        images[num_train:] if has_test else None,
        labels[num_train:] if has_test else None,
        flip=True,
        decoding=settings.decoding,
        files=[index.relative_path(files[i]) for i in kept[:num_train]],
        groups=groups if any(groups) else None,
        validation=validation or None,
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
    key = _cache_key(index, f"{size} {settings.decoding} {HAS_HEIF}")
    cache = cache_file(index.root, size)
    cached = _read_cache(cache, key)
    if cached is not None:
        return cached, []
    images = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
    thumbnails = torch.empty(len(files), THUMBNAIL_SIZE, THUMBNAIL_SIZE, dtype=torch.uint8)
    infos: dict[int, PictureInfo] = {}
    unreadable: dict[int, str] = {}
    pictures = decode_all(files, size, 3, settings.decoding)
    progress = tqdm(pictures, "decoding images", len(files), disable=quiet, leave=False, unit="")
    for number, (_, picture) in enumerate(progress):
        if isinstance(picture, Unreadable):
            unreadable[number] = str(picture)
        else:
            images[len(infos)] = torch.from_numpy(picture.pixels)
            thumbnails[len(infos)] = torch.from_numpy(picture.thumbnail)
            infos[number] = picture.info
    decoded = DecodedPictures(images[: len(infos)], thumbnails[: len(infos)], infos, unreadable)
    return decoded, _write_cache(cache, key, decoded)


def cache_file(root: Path, size: int) -> Path:
    """Return the file that holds the decoded pictures of ``size`` pixels a side."""
    return root / CACHE_FOLDER / f"{size}px.safetensors"


def remove_cache(root: Path) -> None:
    """Remove the decoded pictures of a folder, so that they are decoded again.

    Raises:
        UserError: if they cannot be removed.
    """
    for file in (root / CACHE_FOLDER).glob("*px.safetensors"):
        with explain_os_errors(file):
            file.unlink(missing_ok=True)


def _cache_key(index: FolderIndex, options: str) -> str:
    """Return a hash of ``options`` and of the path, size, times and inode of every file."""
    digest = hashlib.sha256(options.encode())
    for file in index.files:
        try:
            status = file.stat()
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        except OSError as error:  # such as a dangling link, which is unreadable
            state = str(error.errno)
        digest.update(os.fsencode(file.relative_to(index.root)) + f"\0{state}\0".encode())
    return digest.hexdigest()


def _read_cache(cache: Path, key: str) -> DecodedPictures | None:
    try:
        tensors, meta = load_tensors(cache, mapped=True)
    except (OSError, DamagedFile):
        return None
    if meta.get("key") != key:
        return None
    infos = {int(number): PictureInfo(*values) for number, values in meta["infos"].items()}
    unreadable = {int(number): reason for number, reason in meta["unreadable"].items()}
    return DecodedPictures(tensors["images"], tensors["thumbnails"], infos, unreadable)


def _write_cache(cache: Path, key: str, decoded: DecodedPictures) -> list[str]:
    """Write the cache, and return a note if that fails."""
    meta = {"key": key, "infos": decoded.infos, "unreadable": decoded.unreadable}
    try:
        cache.parent.mkdir(exist_ok=True)
        save_tensors(cache, {"images": decoded.images, "thumbnails": decoded.thumbnails}, meta)
    except (OSError, UserError) as error:
        return [f"decoded images are not cached: {error}"]
    return []
