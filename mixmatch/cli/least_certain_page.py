"""The HTML page of the least certain images."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixmatch.cli.part_file import Prediction
from mixmatch.data.dataset import ImageSpec
from mixmatch.data.folder.decode import Unreadable, decode_all
from mixmatch.errors import single_line
from mixmatch.files import write_atomically
from mixmatch.runs.plots import to_png

THUMBNAIL = 112  # pixels of an image's side
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Least certain images</title><style>
body { font: 14px system-ui, sans-serif; margin: 24px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
figure { margin: 0; padding: 8px; border: 1px solid #ccc; border-radius: 6px; overflow: hidden; }
figure.wrong { border-color: #c00; background: #fff4f4; }
img { width: 112px; height: 112px; image-rendering: pixelated; display: block; margin: 0 auto 6px; }
figcaption { overflow-wrap: anywhere; } small { color: #666; }
</style></head><body><h1>TITLE</h1><main>
FIGURES
</main></body></html>
"""


def write_page(page: Path, predictions: Sequence[Prediction], num_images: int, spec: ImageSpec) -> None:
    """Write a self-contained page: each image with its three most likely classes, and its true class if known.

    Args:
        page: the HTML file.
        predictions: for the images to show, in this order. Files that cannot be read any more are left out.
        num_images: number of images of which these are the least certain.
        spec: the input of the network, which the page shows, and the classes.

    Raises:
        UserError: if it cannot be written.
    """
    names = [html.escape(single_line(name)) for name in spec.classes]
    pictures = decode_all((Path(p.file.path) for p in predictions), spec.size, spec.channels, spec)
    figures = [
        to_figure(prediction, picture.pixels, names)
        for prediction, (_, picture) in zip(predictions, pictures, strict=True)
        if not isinstance(picture, Unreadable)
    ]
    title = f"The {len(figures)} least certain of {num_images} images, least certain first"
    text = PAGE.replace("TITLE", title).replace("FIGURES", "\n".join(figures))
    write_atomically(page, text.encode("utf-8", "backslashreplace"))


def to_figure(prediction: Prediction, pixels: NDArray[np.uint8], names: Sequence[str]) -> str:
    """Return the HTML of one image.

    Args:
        prediction: for the image.
        pixels: (size, size, channels).
        names: of the classes, escaped.
    """
    image = Image.fromarray(pixels.squeeze())  # gray without channels
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    likely = np.argsort(-np.array(prediction.probabilities), kind="stable")[:3]
    lines = [f"{names[label]} {100 * prediction.probabilities[label]:.1f}%" for label in likely]
    true_label = prediction.file.true_label
    if true_label is not None:
        lines.append(f"true class: {names[true_label]}")
    wrong = " class=wrong" * (true_label not in (None, prediction.label))
    path = html.escape(single_line(prediction.file.path))
    return (
        f'<figure{wrong}><img alt="" title="{path}" '
        f'src="data:image/png;base64,{base64.b64encode(to_png(image)).decode()}">'
        f"<figcaption><b>{lines[0]}</b><br>{'<br>'.join(lines[1:])}<br><small>{path}</small></figcaption></figure>"
    )
