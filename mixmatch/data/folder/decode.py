"""Decode pictures of any format and mode that Pillow reads into squares of uint8 pixels, as a viewer shows them."""

import importlib.util
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from mixmatch.data.dataset import Decoding
from mixmatch.errors import single_line

FILES_AT_ONCE = 128
THUMBNAIL_SIZE = 8
WHITE_IS_ZERO, UNSIGNED = 0, 1  # values of TIFF tags

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
if HAS_HEIF:
    importlib.import_module("pillow_heif").register_heif_opener()

_lock = threading.Lock()  # of warnings and limits, which belong to the process
_current = threading.local()  # .notes: on the picture that this thread decodes


class Unreadable(Exception):
    """A file that cannot be read as a picture; the message is the reason."""


class PictureInfo(NamedTuple):
    """What is known of a picture but its pixels."""

    kind: str  # format and mode of the file: "PNG, RGB"
    size: tuple[int, int]  # width and height in the file
    pages: int  # 1, or 2 if the file has more pages than the first, which was decoded
    transparent: bool  # the background shows through
    flat: bool  # all pixels have the same color
    notes: Sequence[str]  # warnings of Pillow, and a color profile that is ignored


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: NDArray[np.uint8]  # (size, size, channels); with fit=contain the longer side is size
    thumbnail: NDArray[np.uint8]  # (THUMBNAIL_SIZE, THUMBNAIL_SIZE), gray, of the whole picture
    info: PictureInfo


def decode_all(
    files: Iterable[Path], size: int, channels: int = 3, options: Decoding | None = None
) -> Iterator[tuple[Path, Picture | Unreadable]]:
    """Yield each file with its picture or the reason that it has none; uses all cores and bounded memory.

    Args:
        files: any number.
        size, channels, options: as for ``decode``.
    """
    options, remaining = options or Decoding(), iter(files)
    while chunk := list(islice(remaining, FILES_AT_ONCE)):
        with _lock, _collect_warnings(), _limit_pixels(options.max_pixels), ThreadPoolExecutor(os.cpu_count()) as pool:
            pictures = list(pool.map(lambda file: _attempt(file, size, channels, options), chunk))
        yield from zip(chunk, pictures, strict=True)


def decode(file: Path, size: int, channels: int = 3, options: Decoding | None = None) -> Picture:
    """Decode a picture, or the first page of several, upright, in sRGB and over a background.

    Args:
        file: of any format and mode that Pillow reads.
        size: side of the square in pixels.
        channels: 3 for RGB, 1 for gray.
        options: default: those of ``Decoding``.

    Raises:
        Unreadable: if the file is not a picture, has too many pixels, or it is unknown which gray value is white.
    """
    ((_, picture),) = decode_all([file], size, channels, options)
    if isinstance(picture, Unreadable):
        raise picture
    return picture


@contextmanager
def _collect_warnings() -> Iterator[None]:
    """Add Pillow's warnings to the notes of the thread that decodes; other threads show theirs as before."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def record(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            notes: list[str] | None = getattr(_current, "notes", None)
            if notes is None:
                show(message, category, *args, **kwargs)
            elif not issubclass(category, Image.DecompressionBombWarning):  # data.max_pixels decides
                notes.append(f"Pillow warns: {single_line(message)}")

        warnings.filterwarnings("always", module=r"(PIL|pillow_heif)\b")
        warnings.showwarning = record
        try:
            yield
        finally:
            warnings.showwarning = show


@contextmanager
def _limit_pixels(max_pixels: int) -> Iterator[None]:
    """Replace Pillow's limit, which also covers pictures within files. It refuses twice ``MAX_IMAGE_PIXELS``."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, -(-max_pixels // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _attempt(file: Path, size: int, channels: int, options: Decoding) -> Picture | Unreadable:
    _current.notes = []
    try:
        picture = _decode(file, size, channels, options)
    except Unreadable as error:
        return error
    finally:
        notes = list(dict.fromkeys(_current.notes))
        del _current.notes
    return picture._replace(info=picture.info._replace(notes=notes))


def _decode(file: Path, size: int, channels: int, options: Decoding) -> Picture:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise Unreadable("not a regular file")
        # Opened by name, Pillow 13.0.0 maps uncompressed TIFF files with their width and height exchanged.
        with open(file, "rb") as stream, Image.open(stream) as opened:
            return decode_opened(opened, size, channels, options, may_change=True)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        number = re.search(r"\d+", str(error))
        pixels = f"{int(number[0]):,} pixels, " if number else ""
        raise Unreadable(_describe_limit(pixels, options)) from error
    except UnidentifiedImageError as error:
        hint = "; pip install pillow-heif" if not HAS_HEIF and file.suffix.lower() in (".heic", ".heif") else ""
        raise Unreadable("not a picture, damaged, or of an unknown format" + hint) from error
    except FileNotFoundError:
        raise Unreadable("a link to a file that does not exist" if file.is_symlink() else "does not exist") from None
    except Exception as error:  # Pillow's plug-ins raise nearly anything on corrupt files
        raise Unreadable(single_line(error) or type(error).__name__) from error


def _describe_limit(pixels: str, options: Decoding) -> str:
    return f"has {pixels}more than data.max_pixels={options.max_pixels}; raise that to read it"


def decode_opened(
    opened: Image.Image, size: int, channels: int, options: Decoding, may_change: bool = False
) -> Picture:
    """Decode a picture that is open, arguments and errors as for ``decode``; ``may_change``: at a smaller scale."""
    if opened.width * opened.height > options.max_pixels:
        raise Unreadable(_describe_limit(f"{opened.width * opened.height:,} pixels, ", options))
    kind, file_size = f"{opened.format}, {opened.mode}", opened.size
    # The preview in an MPO photograph does not count as a page.
    pages = 2 if opened.format != "MPO" and getattr(opened, "is_animated", False) else 1
    profile = opened.info.get("icc_profile")
    if may_change:
        opened.draft("RGB", (2 * size, 2 * size))  # decodes large JPEGs at a smaller scale
    has_more_bits = opened.mode in ("I", "F") or opened.mode.startswith("I;")
    image = to_eight_bits(opened, options.white) if has_more_bits else opened
    image, transparent = _to_rgb(ImageOps.exif_transpose(image), profile, options.background)
    if options.fit == "crop":
        shown = square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    elif options.fit in ("pad", "contain"):
        longer = max(image.size)
        width, height = (max(1, round(side * size / longer)) for side in image.size)  # of a very long picture 1
        shown = image.resize((width, height), Image.Resampling.BICUBIC)
        square = ImageOps.pad(shown, (size, size)) if options.fit == "pad" else shown
    else:
        shown = square = image.resize((size, size), Image.Resampling.BICUBIC)
    flat = shown.getcolors(1) is not None  # None: more than one
    thumbnail = image.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX).convert("L")
    pixels = np.array(square if channels == 3 else square.convert("L")).reshape(square.height, square.width, channels)
    return Picture(pixels, np.array(thumbnail), PictureInfo(kind, file_size, pages, transparent, flat, ()))


def _to_rgb(image: Image.Image, profile: bytes | None, background: str) -> tuple[Image.Image, bool]:
    """Convert a picture of 8 bits to sRGB and lay it over a background.

    Args:
        image: of any mode.
        profile: ICC profile of its colors. One that is corrupt or of other colors is ignored, with a note.
        background: name of a color.

    Returns:
        The picture, and whether it was transparent anywhere.
    """
    alpha = None
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("LA" if gray else "RGBA")
        alpha = image.getchannel("A")
    if gray or image.mode not in ("CMYK", "LAB"):
        image = image.convert("L" if gray else "RGB")
    transform = find_transform(profile, image.mode) if profile else None
    if isinstance(transform, str):
        getattr(_current, "notes", []).append(transform)
    rgb = transform.apply(image) if isinstance(transform, ImageCms.ImageCmsTransform) else image.convert("RGB")
    if alpha is None or alpha.getextrema()[0] == 255:
        return rgb, False
    return Image.composite(rgb, Image.new("RGB", rgb.size, background), alpha), True


@lru_cache(maxsize=32)
def find_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str | None:
    """Return the conversion from an ICC profile to sRGB, for the mode L, RGB, CMYK or LAB.

    Returns:
        The conversion; None if the profile is sRGB; a note if it is corrupt or does not fit the mode.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return f"its color profile is corrupt or not for {mode} and is ignored"
    if mode == "RGB":
        samples = Image.fromarray(np.indices((16, 16, 16), np.uint8).reshape(3, 64, 64).transpose(1, 2, 0) * 17)
        change = np.asarray(transform.apply(samples)).astype(int) - np.asarray(samples)
        if np.abs(change).max() <= 1:  # rounding
            return None
    return transform


def to_eight_bits(image: Image.Image, white: float | None) -> Image.Image:
    """Scale gray of more than 8 bits: black is 0, white becomes 255. Orientation and transparent color stay.

    Args:
        image: with the format of its file.
        white: used if the format does not say which value is white.

    Raises:
        Unreadable: if white is unknown, or a value is not finite.
    """
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits, sample_format = (
        int(np.ravel(tags.get(tag, default))[0])
        for tag, default in ((TiffImagePlugin.BITSPERSAMPLE, 16), (TiffImagePlugin.SAMPLEFORMAT, UNSIGNED))
    )
    values = np.asarray(image)
    if image.format == "TIFF" and image.mode == "I" and bits == 32 and sample_format == UNSIGNED:
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise Unreadable("has values that are not finite")
    # Pillow scales PGM and JPEG 2000 to 16 bits.
    says_white = image.mode != "F" and image.format in ("PNG", "PPM", "JPEG2000", "TIFF")
    if says_white and sample_format == UNSIGNED and bits <= 16:
        white = 2**bits - 1
    elif white is None:
        raise Unreadable(
            f"has gray values from {values.min():g} to {values.max():g}, but its format does not say which value is "
            "white; set data.white"
        )
    scaled = values.astype(np.float64) * (255 / white)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    gray = Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))
    if "transparency" in image.info:
        gray.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    gray.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return gray
