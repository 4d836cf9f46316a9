"""Pictures as they come, of any format and mode that Pillow reads, as squares of uint8; and finding them in folders."""

import importlib.util
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from mixmatch.errors import UserError, single_line

Fit = Literal["crop", "pad", "stretch"]
# What operating systems leave in folders; hidden files are passed over anyway.
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
FILES_AT_ONCE = 512
# Tags of TIFF that say what range numbers have.
MOST_VALUE, LEAST_FLOAT, MOST_FLOAT = 281, 340, 341


# Pictures of up to twice as many pixels as Pillow warns of are read; it refuses larger ones itself.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
HEIF = importlib.util.find_spec("pillow_heif") is not None
if HEIF:  # the plug-in that Pillow needs for the photographs of telephones
    importlib.import_module("pillow_heif").register_heif_opener()


class Unreadable(Exception):
    """A file that cannot be read as a picture; the message says why."""


@dataclass(frozen=True)
class Picture:
    """A picture that has been read.

    Attributes:
        pixels: (size, size, channels) uint8.
        width, height: of the file.
        kind: format and mode of the file, such as ``JPEG, RGB``.
        pages: how many the file has, of which the first was read; 2 stands for any number above 1.
    """

    pixels: np.ndarray
    width: int
    height: int
    kind: str
    pages: int


def find_images(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` in the same order on every machine: hidden ones and litter are passed over.

    Linked folders are followed, each folder once.

    Raises:
        UserError: if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); mend its permissions or remove it")

    seen = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not is_litter(name))


def check_there(paths: Sequence[Path]) -> None:
    """Raise UserError if one of some paths to pictures is not there; a link that leads nowhere is."""
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{path}: is not there; give files or folders of pictures")


def is_folder_name(name: str) -> bool:
    """Tell whether the name of a class can be a folder's on any system, and leads nowhere else."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\\0")


def is_litter(name: str) -> bool:
    """Tell whether a file is one that nobody put there as a picture."""
    return name.startswith(".") or name.lower() in LITTER


def decode_all(
    files: Iterable[Path], size: int, channels: int = 3, fit: Fit = "crop"
) -> Iterator[tuple[Path, Picture | Unreadable]]:
    """Yield each file with its picture, or with why it cannot be read; on all cores, in bounded memory.

    Args:
        files: any number.
        size, channels, fit: as for ``decode``.
    """

    def attempt(file: Path) -> Picture | Unreadable:
        try:
            return decode(file, size, channels, fit)
        except Unreadable as error:
            return error

    # Pillow decodes outside Python's global lock, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        remaining = iter(files)
        while some := list(islice(remaining, FILES_AT_ONCE)):
            yield from zip(some, pool.map(attempt, some), strict=True)


def decode(file: Path, size: int, channels: int = 3, fit: Fit = "crop") -> Picture:
    """Read one picture, of several pages the first.

    Args:
        file: of any format and mode that Pillow knows; 16-bit, 32-bit and floating-point gray by the range that the
            file says.
        size: pixels of the square's side.
        channels: 3 for RGB, 1 for gray.
        fit: ``crop`` takes the central square, ``pad`` puts black beside the whole, ``stretch`` bends it.

    Raises:
        Unreadable: if it is no picture, or its range of values cannot be told.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise Unreadable("is no file")
        with Image.open(file) as image:
            width, height, kind = image.width, image.height, f"{image.format}, {image.mode}"
            # A photograph of a telephone (MPO) has its preview as a second page.
            pages = 1 + (image.format != "MPO" and getattr(image, "is_animated", False))
            image.draft("RGB", (2 * size, 2 * size))  # JPEG alone: decodes a large photograph at a smaller scale
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                image = to_eight_bits(image)
            image = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
            if fit == "crop":
                square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            elif fit == "pad":
                square = ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
            else:
                square = image.resize((size, size), Image.Resampling.BICUBIC)
            pixels = np.asarray(square).reshape(size, size, channels).copy()
            return Picture(pixels, width, height, kind, pages)
    except Unreadable:
        raise
    except Exception as error:
        plug_in = "; pip install pillow-heif reads it" * (not HEIF and file.suffix.lower() in (".heic", ".heif"))
        raise Unreadable(single_line(error) + plug_in) from error


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale gray of more than 8 bits by the range that the file says, and keep how it is to be turned.

    Raises:
        Unreadable: if it says none, and the values do not tell either.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise Unreadable("has values that are not finite")
    least, most = float(values.min()), float(values.max())
    low, high = tags.get(LEAST_FLOAT, 0), tags.get(MOST_FLOAT) or tags.get(MOST_VALUE)
    low, high = (bound[0] if isinstance(bound, tuple) else bound for bound in (low, high))
    if high is None:
        low = 0
        if image.mode == "F":
            high = 1 if most <= 1 else 255
        elif image.mode == "I" and image.format != "PNG":  # 32 bits, of which all are used by nobody
            high = 255 if most <= 255 else None
        else:
            # 10, 12 or 14 bits in a file of 16 that does not say so would come out black.
            high = 65535 if most >= 2**14 or most == 0 else None
    if high is None or least < low or most > high or high <= low:
        raise Unreadable(
            f"gray values from {least:g} to {most:g}, and the file does not say what white is; convert it to 8 bits"
        )
    gray = Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))
    gray.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return gray
