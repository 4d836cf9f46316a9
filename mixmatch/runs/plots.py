"""Pictures for TensorBoard and reports, drawn by Matplotlib without its global state."""

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

# Matplotlib is imported where it is used: that takes half a second, which predictions and start-up need not wait.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
GRID_ROWS = 8
GRID_IMAGES = 24
TILE_PIXELS = 96  # minimum width of an image in a grid
CAPTION_PIXELS = 34  # two lines
CELL_INCHES = 0.3  # of a confusion matrix, if that makes it at most MAX_INCHES wide
MAX_INCHES = 8.0
LABEL_INCHES = 1.5
LINE_STYLES = ("-", "--", ":", "-.")
CURVES_INCHES = 8.0, 4.5
LEGEND_LETTERS = 110  # of a line
# Matplotlib takes each letter from the first of these that has it. Families that are not installed are left out.
FONT_FAMILIES = [
    "DejaVu Sans",
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei"),  # Linux
    *("Arial Unicode MS", "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo"),  # macOS
]


def to_png(image: Image.Image) -> bytes:
    """Return the contents of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def plot_views(preview: dict[str, np.ndarray], classes: Sequence[str]) -> Image.Image:
    """Plot views of unlabeled images, a row for each image, with its guessed label. See ``Trainer.preview``."""
    views = preview["views"][:, :GRID_ROWS].swapaxes(0, 1)
    captions = [describe_guess(guess, classes) for guess in preview["guesses"][:GRID_ROWS] for _ in preview["views"]]
    return plot_grid(views.reshape(-1, *views.shape[2:]), captions, columns=len(preview["views"]))


def plot_mixed_batch(preview: dict[str, np.ndarray], classes: Sequence[str]) -> Image.Image:
    """Plot some of the images of a step that have targets. See ``Trainer.preview``."""
    count = len(preview["targets"])
    shown = np.linspace(0, count - 1, min(count, GRID_IMAGES)).astype(int)
    captions = [describe_guess(target, classes) for target in preview["targets"][shown]]
    return plot_grid(preview["images"][shown], captions, columns=4)


def plot_grid(images: np.ndarray, captions: Sequence[str], columns: int) -> Image.Image:
    """Plot images in rows, each above its caption.

    Args:
        images: (n, c, h, w) in [-1, 1]; unless c is 3, the mean of the channels is shown in gray.
        captions: n texts of up to two lines.
        columns: images per row.
    """
    from matplotlib.figure import Figure

    if images.shape[1] != 3:
        images = images.mean(axis=1, keepdims=True)
    pixels = np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    scale = -(-TILE_PIXELS // pixels.shape[2])
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    margins = ((0, -len(pixels) % columns), (0, CAPTION_PIXELS), (0, 6), (0, 0))
    tiles = np.pad(pixels, margins, constant_values=255)
    count, tile_height, tile_width, _ = tiles.shape
    width, height = columns * tile_width, count // columns * tile_height
    rows = tiles.reshape(-1, columns, *tiles.shape[1:]).swapaxes(1, 2)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(rows.reshape(height, width, 3))
    for i, caption in enumerate(captions):
        row, column = divmod(i, columns)
        lines = "\n".join(line[: tile_width // 7] for line in caption.split("\n"))
        bottom = (row + 1) * tile_height - CAPTION_PIXELS
        figure.text(column / columns, 1 - bottom / height, lines, **_text_style(), va="top")
    return _render(figure)


def plot_confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Plot (C, C) counts, true classes in rows, as percentages of each true class."""
    from matplotlib.figure import Figure

    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    cell = min(CELL_INCHES, MAX_INCHES / len(classes))
    width = cell * len(classes)
    side = max(3.0, width + LABEL_INCHES + 0.3)
    figure = Figure(figsize=(side, side), dpi=DPI)
    # Not layout="constrained", which takes as long as everything else.
    axes = figure.add_axes((LABEL_INCHES / side, 0.25 / side, width / side, width / side))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.xaxis.tick_top()
    has_room_for_names = cell >= CELL_INCHES / 2
    ticks = range(len(classes)) if has_room_for_names else []
    labels = [class_label(classes, i) for i in ticks]
    axes.set_xticks(ticks, labels, rotation=90, **_text_style())
    axes.set_yticks(ticks, labels, **_text_style())
    if cell == CELL_INCHES:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", color=color, size=8, ha="center", va="center")
    return _render(figure)


class Curves(NamedTuple):
    """The accuracies of runs that differ only in the seed.

    Attributes:
        label: for the legend.
        runs: accuracy in percent by step, of each run.
        mean: of the runs, by step.
    """

    label: str
    runs: list[dict[int, float]]
    mean: dict[int, float]


def plot_curves(groups: Sequence[Curves], accuracy: str) -> Image.Image:
    """Plot accuracy over steps: a thick line for the mean of each group, and a thin one for each of its runs.

    Args:
        groups: one color each.
        accuracy: name of the axis.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    labels = [textwrap.fill(group.label, LEGEND_LETTERS, subsequent_indent="    ") for group in groups]
    width, height = CURVES_INCHES
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(width, height + 0.17 * lines), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=f"{accuracy} (%)")
    for number, (group, label) in enumerate(zip(groups, labels, strict=True)):
        color, line = colormaps["tab10"](number % 10), LINE_STYLES[number // 10 % len(LINE_STYLES)]
        style: dict[str, Any] = {"color": color, "linestyle": line}
        for curve in group.runs:
            axes.plot([*curve], [*curve.values()], linewidth=0.8, alpha=0.5, marker=_marker(curve), **style)
        mean = group.mean
        axes.plot([*mean], [*mean.values()], linewidth=2, marker=_marker(mean), label=label, **style)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)
    legend = figure.legend(loc="outside lower left", frameon=False, prop={"family": _find_fonts()[0], "size": 8})
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _render(figure)


def _marker(curve: dict[int, float]) -> str | None:
    """Return a marker for a single point, which has no line."""
    return "o" if len(curve) == 1 else None


def describe_guess(probabilities: np.ndarray, classes: Sequence[str]) -> str:
    """Return the two most likely classes with their percentages, one per line; only one if it has all."""
    first, second = probabilities.argsort(kind="stable")[::-1][:2]
    shown = [first, second] if probabilities[second] >= 0.005 else [first]
    return "\n".join(f"{100 * probabilities[i]:.0f}% {class_label(classes, i)}" for i in shown)


def class_label(classes: Sequence[str], number: int, max_length: int = 14) -> str:
    """Return the name of a class, shortened, or ``#number`` if no font has its letters."""
    name = classes[number]
    if not all(ord(letter) in _find_fonts()[1] for letter in name):
        return f"#{number}"
    return name if len(name) <= max_length else name[: max_length - 1] + "…"


@cache
def _find_fonts() -> tuple[list[str], frozenset[int]]:
    """Return which of ``FONT_FAMILIES`` are installed, and the code points that they have."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [family for family in FONT_FAMILIES if family in installed]
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    return families, frozenset(code for font in fonts for code in font.get_charmap())


def _text_style() -> dict[str, Any]:
    return {"family": _find_fonts()[0], "size": 8, "parse_math": False}  # class names may contain $


def _render(figure: "Figure") -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
