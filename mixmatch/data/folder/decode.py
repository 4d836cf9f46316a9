"""Decode pictures of any format and mode that Pillow reads into squares of uint8 pixels."""

import importlib.util
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from mixmatch.data.dataset import Fit
from mixmatch.errors import single_line

FILES_AT_ONCE = 512
# TIFF tags with the range of gray values.
MAX_SAMPLE_VALUE, FLOAT_MIN_SAMPLE_VALUE, FLOAT_MAX_SAMPLE_VALUE = 281, 340, 341

# Pillow itself refuses pictures of more than twice the pixels that it warns of.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
if HAS_HEIF:
    importlib.import_module("pillow_heif").register_heif_opener()


class Unreadable(Exception):
    """A file that cannot be read as a picture; the message is the reason."""


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: NDArray[np.uint8]  # (size, size, channels)
    pages: int  # 1, or 2 if the file has more pages than the first, which was decoded


def decode_all(
    files: Iterable[Path], size: int, channels: int = 3, fit: Fit = "crop"
) -> Iterator[tuple[Path, Picture | Unreadable]]:
    """Yield each file with its picture or the reason that it has none; uses all cores and bounded memory.

    Args:
        files: any number.
        size, channels, fit: as for ``decode``.
    """

    def attempt(file: Path) -> Picture | Unreadable:
        try:
            return decode(file, size, channels, fit)
        except Unreadable as error:
            return error

    remaining = iter(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
        while chunk := list(islice(remaining, FILES_AT_ONCE)):
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)


def decode(file: Path, size: int, channels: int = 3, fit: Fit = "crop") -> Picture:
    """Decode a picture, or the first page of several.

    Args:
        file: of any format and mode that Pillow reads. Gray of more than 8 bits is scaled by the range in the file.
        size: side of the square in pixels.
        channels: 3 for RGB, 1 for gray.
        fit: ``crop`` takes the central square, ``pad`` adds black borders, ``stretch`` changes the aspect ratio.

    Raises:
        Unreadable: if the file is not a picture, or the range of its gray values is unknown.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise Unreadable("not a regular file")
        with Image.open(file) as opened:
            pages = 2 if has_several_pages(opened) else 1
            opened.draft("RGB", (2 * size, 2 * size))  # decodes large JPEGs at a smaller scale
            is_deep = opened.mode in ("I", "F") or opened.mode.startswith("I;")
            image: Image.Image = to_eight_bits(opened) if is_deep else opened
            image = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
            if fit == "crop":
                square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            elif fit == "pad":
                square = ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
            else:
                square = image.resize((size, size), Image.Resampling.BICUBIC)
            return Picture(np.array(square).reshape(size, size, channels), pages)
    except Unreadable:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything on corrupt files
        hint = "; pip install pillow-heif" if not HAS_HEIF and file.suffix.lower() in (".heic", ".heif") else ""
        raise Unreadable(single_line(error) + hint) from error


def has_several_pages(image: Image.Image) -> bool:
    """Return whether a file has more pages or frames than one; the preview in an MPO photograph does not count."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale gray of more than 8 bits to 0 to 255 by the range in the file, and keep the orientation.

    Raises:
        Unreadable: if the file has no range and the values do not imply one.
    """
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise Unreadable("has values that are not finite")
    least, most = float(values.min()), float(values.max())
    low, high = tags.get(FLOAT_MIN_SAMPLE_VALUE, 0), tags.get(FLOAT_MAX_SAMPLE_VALUE) or tags.get(MAX_SAMPLE_VALUE)
    low, high = (bound[0] if isinstance(bound, tuple) else bound for bound in (low, high))
    if high is None:
        low = 0
        if image.mode == "F":
            high = 1 if most <= 1 else 255
        elif image.mode == "I" and image.format != "PNG":  # 32 bits: no camera or scanner uses all of them
            high = 255 if most <= 255 else None
        else:  # 16 bits, of which an instrument may use 10, 12 or 14
            high = 65535 if most >= 2**14 or most == 0 else None
    if high is None or least < low or most > high or high <= low:
        raise Unreadable(f"gray values are {least:g} to {most:g}, but white is unknown; convert it to 8 bits")
    gray = Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))
    gray.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return gray
