"""Your own photographs, in folders: train/<class>/, test/<class>/ and unlabeled/, or in any with a table of labels."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from mixmatch.data.dataset import DataSettings, ImageData, check_memory
from mixmatch.data.folder.decode import HEIF, Fit, Unreadable, decode, decode_all
from mixmatch.data.folder.index import FolderIndex, list_photographs
from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, load_tensors, save_tensors

DEFAULT_SIZE = 32
NAMED = 5  # files that a message names


class FolderSettings(DataSettings):
    """The ``data`` section of folders."""

    labels: str | None = Field(
        None,
        description="of folder: CSV below data.root with columns file, class, group, the last two if wanted: "
        "class in place of folders' names, group for what validation must not split",
    )
    fit: Fit = Field(
        "crop", description="of folder: crop takes the central square, pad puts black beside, stretch bends the picture"
    )
    skip_unreadable: bool = Field(False, description="of folder: leave out files that cannot be read as pictures")

    def title(self) -> str:
        """Return the name of the folder of photographs, without what a file system might not take."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.root).resolve().name).strip("-.") or self.dataset


@dataclass(frozen=True)
class Decoded:
    """The pictures of some files.

    Attributes:
        images: (n, size, size, 3) uint8, black where a file could not be read.
        facts: (n, 4) int64: width and height of the file, pages (2 for several), index into ``kinds``.
        kinds: formats and modes, see ``Picture.kind``.
        unreadable: for each file that could not be read, by index, why.
        notes: what went otherwise than wished, a line each.
    """

    images: Tensor
    facts: Tensor
    kinds: list[str]
    unreadable: dict[int, str]
    notes: list[str]

    def several_pages(self) -> list[int]:
        """Return the indices of files of which only the first page was read."""
        return torch.nonzero(self.facts[:, 2] > 1).flatten().tolist()


def load_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read the pictures below ``settings.root`` as squares of ``settings.image_size`` pixels.

    Raises:
        UserError: if folders are missing or contradictory, files are no pictures, or memory is too small.
    """
    listing = list_photographs(Path(settings.root), settings.labels)
    if listing.problems:
        first, more = listing.problems[0], len(listing.problems) - 1
        raise UserError(first + f" (and {more} more such things: --check names them all)" * (more > 0))
    decoded = read_pictures(listing, settings, device, quiet)
    root, files, notes = listing.root, listing.files, list(decoded.notes)
    if decoded.unreadable:
        named = name_some([f"{files[i]}: {why}" for i, why in decoded.unreadable.items()])
        if not settings.skip_unreadable:
            a_picture, it = ("a picture", "it") if len(decoded.unreadable) == 1 else ("pictures", "them")
            raise UserError(
                f"{count_files(len(decoded.unreadable))} cannot be read as {a_picture}: {named}; mend or remove {it}, "
                "or leave out what cannot be read with data.skip_unreadable=true"
            )
        notes.append(f"left out {count_files(len(decoded.unreadable))} that cannot be read: {named}")
    if listing.strays:
        notes.append(f"nothing looks at {name_some([listing.place(path) for path in listing.strays])} in {root}")
    pages = decoded.several_pages()
    if pages:
        named = name_some([listing.place(files[i]) for i in pages])
        notes.append(f"only the first page is used of {named}")
    kept = np.array([i not in decoded.unreadable for i in range(len(files))])
    labels, count = torch.tensor(listing.labels)[kept], int(kept[: listing.num_train].sum())
    images = decoded.images[torch.from_numpy(kept)] if decoded.unreadable else decoded.images
    for number, name in enumerate(listing.classes):
        if not (labels[:count] == number).any():
            raise UserError(f"{root}: class {name!r} has no picture that can be read; add some")
    has_test = count < len(labels)
    groups = np.array(listing.groups)[kept][:count]
    return ImageData(
        "folder",
        listing.classes,
        images[:count],
        labels[:count],
        images[count:] if has_test else None,
        labels[count:] if has_test else None,
        flip=True,
        fit=settings.fit,
        files=[listing.place(file) for file, keep in zip(files, kept, strict=True) if keep][:count],
        groups=groups.tolist() if any(groups) else None,
        notes=notes,
    )


def count_files(count: int) -> str:
    """Return ``1 file`` and the like."""
    return f"{count:,} file{'s' * (count != 1)}"


def name_some(names: list[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f"; and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def read_pictures(listing: FolderIndex, settings: FolderSettings, device: torch.device, quiet: bool) -> Decoded:
    """Read all pictures of a listing, from the cache if files, size and fit are the same as then.

    Raises:
        UserError: if there is no room for them, here or on ``device``.
    """
    files, root, size, fit = listing.files, listing.root, settings.image_size or DEFAULT_SIZE, settings.fit
    check_memory(len(files) * size * size * 3, device)
    digest = hashlib.sha256(f"{size} {fit} {HEIF}".encode())
    for file in files:
        try:
            status = file.stat()
            tells = f"{status.st_size} {status.st_mtime_ns}"
        except OSError as error:  # a link to nowhere: not to be read, as others are
            tells = str(error.errno)
        digest.update(os.fsencode(file.relative_to(root)) + f"\0{tells}\0".encode())
    key, cache = digest.hexdigest(), root / ".mixmatch-cache" / f"{size}px.safetensors"
    found = _read_cache(cache, key, (len(files), size, size, 3))
    if found is not None and not any(_can_be_read_now(files[i], size, fit) for i in found.unreadable):
        return found
    images, facts = torch.zeros(len(files), size, size, 3, dtype=torch.uint8), torch.zeros(len(files), 4).long()
    kinds: dict[str, int] = {}
    unreadable: dict[int, str] = {}
    progress = tqdm(decode_all(files, size, 3, fit), "decoding images", len(files), disable=quiet, leave=False, unit="")
    for number, (_, picture) in enumerate(progress):
        if isinstance(picture, Unreadable):
            unreadable[number] = str(picture)
        else:
            images[number] = torch.from_numpy(picture.pixels)
            kind = kinds.setdefault(picture.kind, len(kinds))
            facts[number] = torch.tensor([picture.width, picture.height, picture.pages, kind])
    decoded = Decoded(images, facts, list(kinds), unreadable, [])
    decoded.notes.extend(_write_cache(cache, key, decoded))
    return decoded


def _can_be_read_now(file: Path, size: int, fit: Fit) -> bool:
    try:
        decode(file, size, 3, fit)
    except Unreadable:
        return False
    return True


def _read_cache(cache: Path, key: str, shape: tuple[int, ...]) -> Decoded | None:
    try:
        tensors, meta = load_tensors(cache)
        if meta["key"] != key:
            return None
        unreadable = {int(number): str(why) for number, why in meta["unreadable"].items()}
        decoded = Decoded(tensors["images"], tensors["facts"], [str(kind) for kind in meta["kinds"]], unreadable, [])
    except (OSError, DamagedFile, LookupError, TypeError, ValueError, AttributeError):
        return None  # not there or not usable: decode again
    images, facts = decoded.images, decoded.facts
    fits = images.shape == shape and images.dtype == torch.uint8 and facts.shape == (len(images), 4)
    fits = fits and facts.dtype == torch.int64 and bool((facts[:, 3] < max(1, len(decoded.kinds))).all())
    return decoded if fits and set(unreadable) <= set(range(len(images))) else None


def _write_cache(cache: Path, key: str, decoded: Decoded) -> list[str]:
    """Keep what was read for the next time, and return a line if that cannot be."""
    try:
        if decoded.images.numel() > 0.9 * psutil.virtual_memory().available:
            raise UserError("writing them takes as much memory again as they do")
        cache.parent.mkdir(exist_ok=True)
        meta = {"key": key, "kinds": decoded.kinds, "unreadable": decoded.unreadable}
        save_tensors(cache, {"images": decoded.images, "facts": decoded.facts}, meta)
    except (OSError, UserError) as error:
        return [f"decoded images are not kept for next time: {error}"]
    return []
