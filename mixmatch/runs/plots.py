"""Pictures of images, distributions and matrices, drawn with Pillow in milliseconds."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mixmatch.runs.fonts import load_font, show_name

TILE = 96  # pixels of an image's side in a picture, at least
LETTERS = 13  # pixels of their height
LINE = 16
# Pixels of a confusion matrix: TensorBoard shows pictures 350 wide, and a cell of 28 has room for its number.
SHOWN, LARGEST, CELL_WITH_NUMBER, LARGEST_CELL = 350, 800, 28, 40


def to_png(picture: Image.Image) -> bytes:
    """Return the contents of a PNG file."""
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def draw_grid(images: np.ndarray, captions: Sequence[str], columns: int) -> Image.Image:
    """Draw images in rows, each over its caption.

    Args:
        images: (n, c, h, w) in [-1, 1], c 1 or 3.
        captions: n texts of up to two lines.
        columns: images per row.
    """
    pixels = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])).transpose(0, 2, 3, 1)
    scale = -(-TILE // pixels.shape[2])
    width, height = scale * pixels.shape[2] + 6, scale * pixels.shape[1] + 2
    below = 2 * LINE + 4
    rows = -(-len(pixels) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (height + below)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = i % columns * width, i // columns * (height + below)
        tile = Image.fromarray(image).resize((width - 6, height - 2), Image.Resampling.NEAREST)
        canvas.paste(tile, (left, top))
        for number, line in enumerate(caption.split("\n")):
            at = (left, top + height - 2 + number * LINE)
            draw.text(at, fit(line, width - 4), "black", load_font(line, LETTERS))
    return canvas


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, (C, C) counts, as shares of each true class, with numbers where there is room."""
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    count = len(classes)
    readable = min(CELL_WITH_NUMBER, LARGEST // count)
    names = [show_name(classes, number) for number in range(count)] if readable >= LETTERS else []
    widths = [int(load_font(name, LETTERS).getlength(name)) for name in names]
    margin = 8 + max([3 * LINE, *widths])
    cell = max(4, readable, min(LARGEST_CELL, (SHOWN - margin) // count))
    side = margin + cell * len(classes)
    canvas = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(canvas), load_font("0", LETTERS)
    for i in range(len(classes)):
        for j in range(len(classes)):
            share = shares[i, j]
            left, top = margin + j * cell, margin + i * cell
            shade = round(255 * (1 - share))
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), (shade, shade, 255))
            if cell >= CELL_WITH_NUMBER and matrix[i, j]:
                ink = "white" if share > 0.5 else "black"
                draw.text((left + cell / 2, top + cell / 2), f"{100 * share:.0f}", ink, font, anchor="mm")
    for i, name in enumerate(names):
        letters = load_font(name, LETTERS)
        draw.text((margin - 4, margin + (i + 0.5) * cell), name, "black", letters, anchor="rm")
        if max(widths) < cell:
            draw.text((margin + (i + 0.5) * cell, margin - 4), name, "black", letters, anchor="mb")
            continue
        upright = Image.new("RGB", (margin - 8, cell), "white")
        ImageDraw.Draw(upright).text((0, cell / 2), name, "black", letters, anchor="lm")
        canvas.paste(upright.rotate(90, expand=True), (margin + i * cell, 4))
    draw.text((2, 2), "row: true\ncolumn:\npredicted", "black", load_font("a", 11), spacing=2)
    return canvas


def fit(line: str, width: int) -> str:
    """Cut a line so that it is no wider than so many pixels."""
    font = load_font(line, LETTERS)
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line


def describe_guess(distribution: np.ndarray, classes: Sequence[str]) -> str:
    """Name the two most likely classes with their percentages, a line each; one alone if the other has none."""
    likely = distribution.argsort(kind="stable")[::-1][:2]
    lines = [f"{100 * distribution[i]:.0f}% {show_name(classes, i)}" for i in likely]
    return "\n".join(lines if distribution[likely[-1]] >= 0.005 else lines[:1])
