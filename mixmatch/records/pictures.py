"""Pictures of images, distributions and matrices, drawn with Pillow in milliseconds."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 72  # pixels of an image's side in a picture, at least
CAPTION = 28  # pixels below it, for two lines


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
    width, height = scale * pixels.shape[2] + 4, scale * pixels.shape[1] + 4
    rows = -(-len(pixels) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (height + CAPTION)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = i % columns * width, i // columns * (height + CAPTION)
        tile = Image.fromarray(image).resize((width - 4, height - 4), Image.Resampling.NEAREST)
        canvas.paste(tile, (left, top))
        draw.text((left, top + height - 4), caption, "black", font, spacing=0)
    return canvas


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, (C, C) counts, as shares of each true class, with numbers where there is room."""
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    cell = max(4, min(40, 800 // len(classes)))
    margin = 76
    side = margin + cell * len(classes)
    canvas = Image.new("RGB", (side + 8, side + 8), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, name in enumerate(classes):
        for j in range(len(classes)):
            share = shares[i, j]
            left, top = margin + j * cell, margin + i * cell
            shade = round(255 * (1 - share))
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), (shade, shade, 255))
            if cell >= 28 and matrix[i, j]:
                ink = "white" if share > 0.5 else "black"
                draw.text((left + cell / 2, top + cell / 2), f"{100 * share:.0f}", ink, font, anchor="mm")
        if cell >= 12:
            at = margin + (i + 0.5) * cell
            draw.text((margin - 4, at), name[:11], "black", font, anchor="rm")
            draw.text((at, margin - 4), name[:6], "black", font, anchor="mb")
    draw.text((2, 2), "true class in rows,\npredicted in columns,\n% of the row", "black", font)
    return canvas


def describe_guess(distribution: np.ndarray, classes: Sequence[str]) -> str:
    """Name the two most likely classes with their percentages, a line each; one alone if the other has none."""
    likely = distribution.argsort(kind="stable")[::-1][:2]
    lines = [f"{classes[i][:8]} {100 * distribution[i]:.0f}%" for i in likely]
    return "\n".join(lines if distribution[likely[-1]] >= 0.005 else lines[:1])
