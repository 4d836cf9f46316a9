"""Your own photographs, in folders: train/<class>/, test/<class>/ and unlabeled/."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from mixmatch.data.images import DataSettings, ImageData, check_memory
from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, load_tensors, save_tensors

DEFAULT_SIZE = 32


def load_folder(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read the images below ``settings.root``, each as its central square of ``settings.image_size`` pixels.

    Raises:
        UserError: if folders are missing or contradictory, a file is no image, or memory is too small.
    """
    root, size = Path(settings.root), settings.image_size or DEFAULT_SIZE
    classes = sorted(path.name for path in _subfolders(root / "train"))
    if len(classes) < 2:
        raise UserError(f"{root / 'train'}: needs a folder of images for each class, at least two, has {len(classes)}")
    unknown = sorted(path.name for path in _subfolders(root / "test") if path.name not in classes)
    if unknown:
        raise UserError(f"{root / 'test' / unknown[0]}: class {unknown[0]!r} is in test/ but not in train/")
    files: list[Path] = []
    labels: list[int] = []
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            members = list(_image_files(root / part / name))
            if part == "train" and not members:
                raise UserError(f"{root / part / name}: holds no images; add some, or remove the folder")
            files += members
            labels += [number] * len(members)
        if part == "train":
            members = list(_image_files(root / "unlabeled"))
            files += members
            labels += [-1] * len(members)
            num_train = len(files)
    check_memory(len(files) * size * size * 3, device)
    images = _read_or_decode(files, root, size, quiet)
    known = torch.tensor(labels)
    has_test = num_train < len(files)
    return ImageData(
        "folder",
        classes,
        images[:num_train],
        known[:num_train],
        images[num_train:] if has_test else None,
        known[num_train:] if has_test else None,
        flip=True,
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except FileNotFoundError:
        if folder.name == "test":
            return []
        raise UserError(f"{folder}: is not there; data.root must hold train/<class>/ with images") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _image_files(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` in the same order on every machine, hidden ones left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _read_or_decode(files: list[Path], root: Path, size: int, quiet: bool) -> Tensor:
    """Return all images as (n, size, size, 3) uint8, from the cache if files and size are the same as then."""
    digest = hashlib.sha256(f"{size}".encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        digest.update(os.fsencode(file.relative_to(root)) + f"\0{status.st_size} {status.st_mtime_ns}\0".encode())
    key, cache = digest.hexdigest(), root / ".mixmatch-cache" / f"{size}px.safetensors"
    try:
        tensors, meta = load_tensors(cache)
        if meta == {"key": key}:
            return tensors["images"]
    except (OSError, DamagedFile):
        pass  # not there or not usable: decode again
    images = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
    # Pillow decodes outside Python's global lock, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda file: _decode(file, size), files)
        progress = tqdm(decoded, "decoding images", total=len(files), unit="", disable=quiet, leave=False)
        for image, pixels in zip(images, progress, strict=True):
            image.copy_(torch.from_numpy(pixels))
    try:
        if images.numel() > 0.9 * psutil.virtual_memory().available:
            raise UserError("writing them takes as much memory again as they do")
        cache.parent.mkdir(exist_ok=True)
        save_tensors(cache, {"images": images}, {"key": key})
    except (OSError, UserError) as error:
        print(f"note: decoded images are not kept for next time: {error}")
    return images


def _decode(file: Path, size: int) -> np.ndarray:
    """Read one image, any format and mode Pillow knows, as the central (size, size, 3) uint8 square of it."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (2 * size, 2 * size))  # JPEG alone: decodes a large photograph at a smaller scale
            if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would clip to 255 instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = ImageOps.exif_transpose(image).convert("RGB")
            return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise UserError(f"{file}: cannot be read as an image ({error}); mend or remove it") from error
