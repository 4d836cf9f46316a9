"""Names in any script, in pictures: in a font of the system that has their letters, where there is one."""

import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

MOST_FONTS = 500  # that are looked at for a letter
NO_LETTER = "\U0010ffff"  # no font has it: it is drawn as those that are missing are


def show_name(names: Sequence[str], number: int, letters: int = 14) -> str:
    """Return a name as it can be drawn: cut to so many letters, or ``#number`` if no font has them."""
    name = names[number]
    name = name if len(name) <= letters else name[: letters - 1] + "…"
    return name if find_font(name) is not None else f"#{number}"


def load_font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of ``size`` pixels that has the letters of ``text``, or Pillow's own if there is none."""
    file = find_font(text)
    return (file and _open(file, size)) or _own(size)


@lru_cache(10000)
def find_font(text: str) -> str | None:
    """Return the file of a font that has all letters of ``text``: empty for Pillow's own, None if there is none."""
    if text.isascii() or _has(_own(16), text):
        return ""
    for file in _fonts():
        font = _open(file, 16)
        if font is not None and _has(font, text):
            return file
    return None


@cache
def _own(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@cache
def _open(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(file, size)
    except (OSError, ValueError):  # of bitmaps of other sizes, or damaged
        return None


def _has(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    missing = bytes(font.getmask(NO_LETTER))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text))


@cache
def _fonts() -> list[str]:
    """Return the system's fonts, plain ones without serifs first."""

    def plainness(file: Path) -> tuple[bool, bool, str]:
        name = file.stem.lower()
        return "sans" not in name, any(word in name for word in ("bold", "italic", "oblique", "mono")), str(file)

    files = [Path(place, name) for folder in _folders() for place, _, names in os.walk(folder) for name in names]
    files = [file for file in files if file.suffix.lower() in (".ttf", ".otf", ".ttc")]
    return [str(file) for file in sorted(files, key=plainness)[:MOST_FONTS]]


def _folders() -> Iterator[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows"), "fonts")
    elif sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"))
    else:
        yield from (home / ".fonts", home / ".local/share/fonts")
        yield from (Path(place, "fonts") for place in ("/usr/local/share", "/usr/share"))
