"""Your own photographs, in folders: train/<class>/, test/<class>/ and unlabeled/."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from mixmatch.data.decode import Fit, Unreadable, decode_all, find_images
from mixmatch.data.images import DataSettings, ImageData, check_memory
from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, load_tensors, save_tensors

DEFAULT_SIZE = 32
NAMED = 5  # unreadable files that a message names


class FolderSettings(DataSettings):
    """The ``data`` section of folders."""

    fit: Fit = Field(
        "crop", description="of folder: crop takes the central square, pad puts black beside, stretch bends the picture"
    )
    skip_unreadable: bool = Field(False, description="of folder: leave out files that cannot be read as pictures")


def load_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read the pictures below ``settings.root`` as squares of ``settings.image_size`` pixels.

    Raises:
        UserError: if folders are missing or contradictory, files are no pictures, or memory is too small.
    """
    root, size = Path(settings.root), settings.image_size or DEFAULT_SIZE
    classes, files, labels, num_train = _list_files(root)
    check_memory(len(files) * size * size * 3, device)
    images, unreadable = _read_or_decode(files, root, size, settings.fit, quiet)
    if unreadable and not settings.skip_unreadable:
        raise UserError(
            f"{_name(unreadable)}; mend or remove {'it' if len(unreadable) == 1 else 'them'}, or leave out what cannot "
            "be read with data.skip_unreadable=true"
        )
    if unreadable:
        print(f"note: left out: {_name(unreadable)}")
    kept = np.array([str(file) not in unreadable for file in files])
    known, in_train = torch.tensor(labels)[kept], np.arange(len(files))[kept] < num_train
    images, count = images[torch.from_numpy(kept)] if unreadable else images, int(in_train.sum())
    missing = [name for number, name in enumerate(classes) if not (known[:count] == number).any()]
    if missing:
        raise UserError(f"{root / 'train' / missing[0]}: holds no picture that can be read; add some")
    has_test = count < len(known)
    return ImageData(
        "folder",
        classes,
        images[:count],
        known[:count],
        images[count:] if has_test else None,
        known[count:] if has_test else None,
        flip=True,
        fit=settings.fit,
        files=[str(file.relative_to(root)) for file, keep in zip(files, kept, strict=True) if keep][:count],
    )


def _list_files(root: Path) -> tuple[list[str], list[Path], list[int], int]:
    """Return the classes, all files, training ones first, their classes or -1, and how many are training files."""
    classes = sorted(path.name for path in _subfolders(root / "train"))
    if len(classes) < 2:
        raise UserError(f"{root / 'train'}: needs a folder of images for each class, at least two, has {len(classes)}")
    unknown = sorted(path.name for path in _subfolders(root / "test") if path.name not in classes)
    if unknown:
        raise UserError(f"{root / 'test' / unknown[0]}: class {unknown[0]!r} is in test/ but not in train/")
    unlabeled = [root / name for name in ("unlabeled", "unlabelled") if (root / name).exists()]
    if len(unlabeled) > 1:
        raise UserError(f"{unlabeled[1]}: is there beside {unlabeled[0].name}/; put all unlabelled images into one")
    files: list[Path] = []
    labels: list[int] = []
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            members = list(find_images(root / part / name)) if (root / part / name).exists() else []
            if part == "train" and not members:
                raise UserError(f"{root / part / name}: holds no images; add some, or remove the folder")
            files += members
            labels += [number] * len(members)
        if part == "train":
            members = [file for folder in unlabeled for file in find_images(folder)]
            files += members
            labels += [-1] * len(members)
            num_train = len(files)
    return classes, files, labels, num_train


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except FileNotFoundError:
        if folder.name == "test":
            return []
        raise UserError(f"{folder}: is not there; data.root must hold train/<class>/ with images") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _name(unreadable: dict[str, str]) -> str:
    """Say which files cannot be read, and why."""
    named = [f"{file}: {reason}" for file, reason in list(unreadable.items())[:NAMED]]
    more = f"; and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
    count = f"{len(unreadable)} files cannot be read as pictures: " if len(unreadable) > 1 else ""
    single = "" if count else "cannot be read as a picture: "
    return f"{count or single}{'; '.join(named)}{more}"


def _read_or_decode(
    files: Sequence[Path], root: Path, size: int, fit: Fit, quiet: bool
) -> tuple[Tensor, dict[str, str]]:
    """Return all images as (n, size, size, 3) uint8, and which files could not be read, and why.

    They come from the cache if files, size and fit are the same as then.
    """
    digest = hashlib.sha256(f"{size} {fit}".encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        digest.update(os.fsencode(file.relative_to(root)) + f"\0{status.st_size} {status.st_mtime_ns}\0".encode())
    key, cache = digest.hexdigest(), root / ".mixmatch-cache" / f"{size}px.safetensors"
    found = _read_cache(cache, key, (len(files), size, size, 3))
    if found is not None:
        return found, {}
    images, unreadable = torch.zeros(len(files), size, size, 3, dtype=torch.uint8), {}
    progress = tqdm(decode_all(files, size, 3, fit), "decoding images", len(files), disable=quiet, leave=False, unit="")
    for image, (file, pixels) in zip(images, progress, strict=True):
        if isinstance(pixels, Unreadable):
            unreadable[str(file)] = str(pixels)
        else:
            image.copy_(torch.from_numpy(pixels))
    if not unreadable:
        _write_cache(cache, key, images)
    return images, unreadable


def _read_cache(cache: Path, key: str, shape: tuple[int, ...]) -> Tensor | None:
    try:
        tensors, meta = load_tensors(cache)
    except (OSError, DamagedFile):
        return None  # not there or not usable: decode again
    images: Any = tensors.get("images")
    fits = meta == {"key": key} and images is not None and images.shape == shape and images.dtype == torch.uint8
    return images if fits else None


def _write_cache(cache: Path, key: str, images: Tensor) -> None:
    try:
        if images.numel() > 0.9 * psutil.virtual_memory().available:
            raise UserError("writing them takes as much memory again as they do")
        cache.parent.mkdir(exist_ok=True)
        save_tensors(cache, {"images": images}, {"key": key})
    except (OSError, UserError) as error:
        print(f"note: decoded images are not kept for next time: {error}")
