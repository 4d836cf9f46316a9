"""A folder of photographs as a data set."""

import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixmatch.data.dataset import ImageData
from mixmatch.data.folder.cache import CHANNELS, PictureCache, cache_folder, file_state
from mixmatch.data.folder.decode import (
    FILES_AT_ONCE,
    THUMBNAIL_SIZE,
    Picture,
    PictureInfo,
    Unreadable,
    decode_all,
)
from mixmatch.data.folder.index import FolderIndex, index_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.data.memory import check_memory, choose_place, describe_place
from mixmatch.data.stored_images import Images, select
from mixmatch.errors import UserError, describe_error
from mixmatch.output import log, tqdm

DEFAULT_SIZE = 32
MANY = 1000  # pictures to decode whose time is worth a line
PICTURES_PER_COMMIT = 4 * FILES_AT_ONCE


class DecodedPictures(NamedTuple):
    """Pictures of the files of an index.

    Attributes:
        images: (n, size, size, 3) uint8, of the files that can be read, in their order.
        thumbnails: (n, THUMBNAIL_SIZE, THUMBNAIL_SIZE) uint8, gray.
        infos: of each file that can be read, by index.
        unreadable: reason for each other file, by index.
    """

    images: Images
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
        raise UserError(index.problems[0] + (f" (and {more} more; --check lists all)" if more else ""))
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
        if settings.labels is None and index.root / "labels.csv" in index.unused_files:
            notes.append("to use labels.csv, set data.labels=labels.csv")
    kept = [*decoded.infos]
    several_pages = [index.paths[i] for i in kept if decoded.infos[i].pages > 1]
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
        select(images, range(num_train)),
        labels[:num_train],
        select(images, range(num_train, len(kept))) if has_test else None,
        labels[num_train:] if has_test else None,
        flip=True,
        decoding=settings.decoding,
        files=[index.paths[i] for i in kept[:num_train]],
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
    """Return the pictures of an index, and notes to print. Those that are not in the cache are decoded and added to it.

    Raises:
        UserError: if there is no room for them where ``data.keep_on`` asks for them, or anywhere.
    """
    size = settings.image_size or DEFAULT_SIZE
    num_bytes, folder = len(index.files) * size * size * CHANNELS, cache_folder(settings)
    place = choose_place(settings.keep_on, num_bytes, device, stored=folder is not None)  # or refuse
    plan = f"training keeps {num_bytes / 1e9:,.1f} GB {describe_place(place, device)}"
    if folder is None:
        check_memory(num_bytes)
        return _decode_into_memory(index, settings, size, plan, quiet), []
    try:
        return _read_cache(PictureCache(folder, size, settings.decoding), index, settings, plan, quiet), []
    except OSError as error:
        reason = f"decoded images are not cached ({describe_error(error)}); set data.cache to another folder"
    check_memory(num_bytes, reason)
    return _decode_into_memory(index, settings, size, plan, quiet), [reason]


def _read_cache(
    cache: PictureCache, index: FolderIndex, settings: FolderSettings, plan: str, quiet: bool
) -> DecodedPictures:
    """Bring the cache up to date, and return its pictures.

    Raises:
        OSError: if it cannot be written or read.
    """
    paths, states = [os.fsencode(path) for path in index.paths], [*map(file_state, index.files)]
    found, unreadable = cache.find(paths, states), dict[int, str]()
    if len(found.missing):
        with cache.lock(found) as writer:
            found = cache.find(paths, states)  # another process may have decoded them
            needs = f"{cache.check_disk(len(found.missing))}; {plan}"
            decoded = _decode(index, found.missing.tolist(), settings, cache.size, needs, quiet)
            while batch := list(islice(decoded, PICTURES_PER_COMMIT)):
                pictures = [(n, paths[n], states[n], picture) for n, picture in batch if isinstance(picture, Picture)]
                writer.add(found, pictures)
                unreadable |= {n: str(picture) for n, picture in batch if isinstance(picture, Unreadable)}
            writer.forget_missing(index.root, {*paths})
            found = found._replace(images=writer.open_images(found))
    kept = np.flatnonzero(found.rows >= 0).tolist()
    none = torch.empty(0, cache.size, cache.size, CHANNELS, dtype=torch.uint8)
    images = found.images.select(kept) if found.images else none
    infos = {n: info for n, info in enumerate(found.infos) if info is not None}
    return DecodedPictures(images, torch.from_numpy(found.thumbnails[kept]), infos, dict(sorted(unreadable.items())))


def _decode_into_memory(
    index: FolderIndex, settings: FolderSettings, size: int, plan: str, quiet: bool
) -> DecodedPictures:
    numbers = range(len(index.files))
    images = torch.empty(len(numbers), size, size, CHANNELS, dtype=torch.uint8)
    thumbnails = torch.empty(len(numbers), THUMBNAIL_SIZE, THUMBNAIL_SIZE, dtype=torch.uint8)
    infos: dict[int, PictureInfo] = {}
    unreadable: dict[int, str] = {}
    for number, picture in _decode(index, numbers, settings, size, plan, quiet):
        if isinstance(picture, Unreadable):
            unreadable[number] = str(picture)
        else:
            images[len(infos)], thumbnails[len(infos)] = map(torch.from_numpy, (picture.pixels, picture.thumbnail))
            infos[number] = picture.info
    return DecodedPictures(images[: len(infos)], thumbnails[: len(infos)], infos, unreadable)


def _decode(
    index: FolderIndex, numbers: Sequence[int], settings: FolderSettings, size: int, needs: str, quiet: bool
) -> Iterator[tuple[int, Picture | Unreadable]]:
    """Yield the picture of each of the files ``numbers``, or why it has none; say how long many will take.

    Args:
        index: of the folder.
        numbers: ascending.
        settings: how to decode.
        size: in pixels.
        needs: room that they need, for the message.
        quiet: show no progress bar.
    """
    start = time.monotonic()
    pictures = decode_all((index.files[number] for number in numbers), size, CHANNELS, settings.decoding)
    bar = tqdm(pictures, "decoding images", len(numbers), disable=quiet, leave=False, unit="")
    for count, (number, (_, picture)) in enumerate(zip(numbers, bar, strict=True)):
        if count == 0 and len(numbers) >= MANY:  # FILES_AT_ONCE are decoded
            seconds = (time.monotonic() - start) * len(numbers) / FILES_AT_ONCE
            about = timedelta(seconds=round(seconds))
            log.info(f"{index.root}: decoding {len(numbers):,} pictures takes about {about}; {needs}")
        yield number, picture
