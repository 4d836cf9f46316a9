"""The HTML page on which a person labels pictures. It needs no server and no network."""

import base64
import hashlib
import json
import os
from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixmatch.data.dataset import Decoding
from mixmatch.data.folder.decode import Unreadable, decode_all
from mixmatch.errors import single_line
from mixmatch.files import csv_path, write_atomically
from mixmatch.labeling.selection import LABELS_FILE, Selection

THUMBNAIL, SMALL_THUMBNAIL, FEW = 320, 200, 1000  # pixels of the longer side, small ones for more than a few pictures


def write_page(page: Path, selection: Selection, folder: Path, decoding: Decoding) -> int:
    """Write a self-contained page that saves ``labels.csv``, and return its size in bytes.

    Args:
        page: the HTML file.
        selection: what it shows. Pictures that cannot be read any more are left out.
        folder: of the pictures.
        decoding: how files become pictures.

    Raises:
        UserError: if it cannot be written.
    """
    side = THUMBNAIL if len(selection.items) <= FEW else SMALL_THUMBNAIL
    thumbnails = decode_all((item.file for item in selection.items), side, options=replace(decoding, fit="contain"))
    entries, rows = [], [*selection.other_labels]
    for item, (_, picture) in zip(selection.items, thumbnails, strict=True):
        if isinstance(picture, Unreadable):
            name = "" if item.label is None else selection.classes[item.label]
            rows.append((item.path, name, item.group))
            continue
        entries.append(
            {
                "file": csv_path(item.path),
                "id": digest(item.file.read_bytes()),  # tells another picture of the same name
                "name": single_line(item.path),
                "url": quote(os.fsencode(Path(os.path.relpath(item.file, page.parent)).as_posix())),
                "guess": item.guess,
                "confidence": round(item.confidence, 4),
                "label": item.label,
                "group": item.group,
                "picture": to_jpeg(picture.pixels),
            }
        )
    data = {
        "folder": digest(os.fsencode(folder.resolve())),  # under which the browser keeps what a person has done
        "title": f"{selection.num_chosen} of {selection.num_unlabeled} unlabeled pictures",
        "file": LABELS_FILE,
        "classes": selection.classes,
        "rows": [[csv_path(path), name, group] for path, name, group in rows],
        "items": entries,
    }
    shown = [(entry["file"], entry["label"], entry["id"]) for entry in entries]
    data["page"] = digest(json.dumps([selection.classes, rows, shown]).encode())
    template = files("mixmatch.labeling").joinpath("page.html").read_text(encoding="utf-8")
    # A name cannot end the script element. json escapes what is not ASCII, lone surrogates too.
    text = template.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1).encode()
    write_atomically(page, text)
    return len(text)


def digest(content: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def to_jpeg(pixels: NDArray[np.uint8]) -> str:
    """Return (h, w, 3) pixels as a JPEG file in base64."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()
