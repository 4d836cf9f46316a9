"""How far a network's confidence can be trusted: calibration error, and a reliability diagram."""

from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

NUM_BINS = 15


class Calibration(NamedTuple):
    """Confidence against accuracy, in bins of equal width (Guo et al., arXiv:1706.04599)."""

    counts: Tensor  # (bins,) int64
    confidence: Tensor  # (bins,) mean confidence, 0 in empty bins
    accuracy: Tensor  # (bins,) share that is correct, 0 in empty bins
    error: float  # ECE, the mean of |accuracy - confidence| over images, in [0, 1]
    wrong_above_99: int  # predictions at least 99% confident and wrong
    above_99: int


def calibrate(probabilities: Tensor, truth: Tensor) -> Calibration:
    """Compare confidence with accuracy.

    Args:
        probabilities: (n, C).
        truth: (n,) true classes, none unknown.
    """
    confidence, labels = probabilities.double().max(dim=1)
    correct = (labels == truth).double()
    # Bin i holds (i / 15, (i + 1) / 15].
    bins = ((confidence * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)
    counts = bins.bincount(minlength=NUM_BINS)
    mean = [bins.bincount(values, minlength=NUM_BINS) / counts.clamp_min(1) for values in (confidence, correct)]
    error = (counts * (mean[0] - mean[1]).abs()).sum().item() / max(len(truth), 1)
    sure = confidence >= 0.99
    return Calibration(counts, mean[0], mean[1], error, int((sure & (labels != truth)).sum()), int(sure.sum()))


def draw_reliability(name: str, calibration: Calibration) -> Image.Image:
    """Draw a reliability diagram: accuracy in each bin of confidence, the gap to it in red, and how many fell there."""
    side, margin, below = 330, 40, 110
    canvas = Image.new("RGB", (side + margin + 10, side + margin + below), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    bottom, width = margin + side, side / NUM_BINS
    for i, (count, sure, right) in enumerate(zip(*(column.tolist() for column in calibration[:3]), strict=True)):
        left = margin + i * width
        if count:
            heights = sorted((sure * side, right * side))
            draw.rectangle((left, bottom - heights[1], left + width - 2, bottom - heights[0]), "#f4a6a0")
            draw.rectangle((left, bottom - right * side, left + width - 2, bottom), "#3060c0", width=1)
        share = count / max(int(calibration.counts.sum()), 1)
        draw.rectangle((left, bottom + below - 30 - 55 * share, left + width - 2, bottom + below - 30), "#999999")
    draw.line((margin, bottom, margin + side, margin), "black")
    draw.rectangle((margin, margin, margin + side, bottom), outline="black")
    for tick in (0, 0.5, 1):
        draw.text((margin - 4, bottom - tick * side), f"{tick:g}", "black", font, anchor="rm")
        draw.text((margin + tick * side, bottom + 4), f"{tick:g}", "black", font, anchor="ma")
    draw.text((margin, 4), f"{name}: accuracy over confidence, ECE {calibration.error:.4f}", "black", font)
    wrong = f"{calibration.wrong_above_99} of {calibration.above_99} guesses above 0.99 are wrong"
    draw.text((margin, 20), wrong, "black", font)
    draw.text(
        (margin, bottom + below - 22), f"share of {int(calibration.counts.sum())} images in each bin", "black", font
    )
    return canvas
