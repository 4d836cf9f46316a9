"""Data sets as uint8 tensors: CIFAR-10, scikit-learn's digits, and folders of photographs.

To add one, write a function that returns an ImageData and name it in ``load_data`` and in config.py.
"""

import hashlib
import os
import pickle
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from mixmatch.config import Data
from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, load_tensors, save_tensors

DIGITS_TEST_PER_CLASS = 40


@dataclass(frozen=True)
class ImageData:
    """Images and what is known of them.

    Attributes:
        name: of the data set.
        classes: names; a label is an index into them.
        images: (n, h, w, c) uint8, all training images, labelled or not.
        labels: (n,) int64, -1 where the class is not known.
        test_images: (m, h, w, c) uint8, or None without a test set.
        test_labels: (m,) int64, or None.
        flip: whether mirrored images are still of their class.
    """

    name: str
    classes: list[str]
    images: Tensor
    labels: Tensor
    test_images: Tensor | None
    test_labels: Tensor | None
    flip: bool

    def fingerprint(self) -> str:
        """Return a hash of the training images and labels."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
        digest.update(self.images.contiguous().numpy())
        digest.update(self.labels.numpy())
        return digest.hexdigest()[:32]


def load_data(config: Data, device: torch.device, quiet: bool) -> ImageData:
    """Read the data set that ``config`` names, downloading or decoding it if need be.

    Args:
        config: the ``data`` section.
        device: where the training set will live; its memory is asked for first.
        quiet: show no progress bars.

    Raises:
        UserError: if the data is missing, damaged, contradictory or too large.
    """
    if config.dataset != "folder" and config.image_size is not None:
        raise UserError(f"data.image_size: {config.dataset} has a size of its own; only folder can be resized")
    if config.dataset == "cifar10":
        return _load_cifar10(Path(config.root))
    if config.dataset == "digits":
        return _load_digits()
    return _load_folder(Path(config.root), config.image_size or 32, device, quiet)


def _load_cifar10(root: Path) -> ImageData:
    from torchvision.datasets import CIFAR10  # a second of import that the other data sets need not pay

    folder = root / CIFAR10.base_folder
    try:
        # Checks the MD5 of every file, unpacks the archive if that is there, and downloads it if not.
        with redirect_stdout(None):
            root.mkdir(parents=True, exist_ok=True)
            train, test = (CIFAR10(root, train=part, download=True) for part in (True, False))
    except (urllib.error.URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        state = "is damaged" if folder.exists() else "is not there"
        raise UserError(
            f"{folder}: CIFAR-10 {state} and could not be downloaded ({reason}); put {CIFAR10.filename} "
            f"(MD5 {CIFAR10.tgz_md5}) into {root}, or try configs/digits.yml, which needs no download"
        ) from None
    return ImageData(
        "cifar10",
        list(train.classes),
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
        flip=True,
    )


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits  # a second of import that the other data sets need not pay

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(labels))
    test = np.sort(np.concatenate([order[labels[order] == c][:DIGITS_TEST_PER_CLASS] for c in range(10)]))
    train = np.setdiff1d(order, test)
    images, labels = torch.from_numpy(images), torch.from_numpy(labels).long()
    names = [str(digit) for digit in range(10)]
    return ImageData("digits", names, images[train], labels[train], images[test], labels[test], flip=False)


def _load_folder(root: Path, size: int, device: torch.device, quiet: bool) -> ImageData:
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
    _check_memory(len(files) * size * size * 3, device)
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


def _check_memory(needed: int, device: torch.device) -> None:
    places = {"this machine": psutil.virtual_memory().available}
    if device.type == "cuda":
        places[str(device)] = torch.cuda.mem_get_info(device)[0]
    for place, free in places.items():
        if needed > 0.9 * free:
            raise UserError(
                f"data: the images take {needed / 2**30:.1f} GiB, {place} has {free / 2**30:.1f} GiB of memory free; "
                "lower data.image_size or use fewer images"
            )


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
