"""Which predictions become pseudo-labels, how many of these are correct, and how far confidence can be trusted."""

import csv
import io
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from mixmatch.config import PseudoLabelSettings
from mixmatch.files import csv_path, csv_text
from mixmatch.runs.results import LabelCounts, Selection

THRESHOLDS = (0.9, 0.95, 0.97, 0.99, 0.999)  # of ScarceClassifier's table
NUM_BINS = 15  # of the calibration error


def select(probabilities: Tensor, settings: PseudoLabelSettings) -> Tensor:
    """Choose the predictions that become labels: a function of probabilities alone, never of true classes.

    Args:
        probabilities: (n, C), rows sum to 1.
        settings: the ``pseudo_label`` section. With a method all are chosen, as it trains on all predictions.

    Returns:
        (n,) bool.
    """
    confidence, labels = probabilities.max(dim=1)
    if settings.method is not None:
        return torch.ones_like(labels, dtype=torch.bool)
    if settings.select == "threshold":
        return confidence >= settings.threshold
    selected = torch.zeros_like(labels, dtype=torch.bool)
    if settings.select == "top":
        for label in labels.unique():
            in_class = labels == label
            count = math.ceil(Fraction(str(settings.fraction)) * int(in_class.sum()))  # 0.07 of 100 are 7
            # Predictions that tie with the last one are selected too: their order means nothing.
            selected |= in_class & (confidence >= confidence[in_class].topk(count).values[-1])
    return selected


def describe_selection(
    step: int,
    probabilities: Tensor,
    selected: Tensor,
    true_labels: Tensor,
    classes: Sequence[str],
    calibration_error: dict[str, float],
) -> Selection:
    """Return the statistics of a selection; ``calibration_error`` is by set of images, the rest as for ``to_csv``."""
    confidence, labels = probabilities.max(dim=1)

    def count(members: Tensor) -> LabelCounts:
        known = members & (true_labels >= 0)
        correct = int((known & (labels == true_labels)).sum())
        return LabelCounts(
            selected=int(members.sum()),
            correct=correct if (true_labels >= 0).any() else None,
            precision=100 * correct / int(known.sum()) if known.any() else None,
        )

    return Selection(
        step=step,
        candidates=len(selected),
        coverage=100 * int(selected.sum()) / max(len(selected), 1),
        classes={name: count(selected & (labels == number)) for number, name in enumerate(classes)},
        thresholds={str(threshold): count(confidence >= threshold) for threshold in THRESHOLDS},
        calibration_error=calibration_error,
        **dict(count(selected)),
    )


def to_csv(
    index: Tensor,
    probabilities: Tensor,
    selected: Tensor,
    true_labels: Tensor,
    classes: Sequence[str],
    files: Sequence[str] | None = None,
) -> str:
    """Return the CSV table of a selection, a row for each prediction.

    Args:
        index: (n,) int64, of the images in the training set.
        probabilities: (n, C).
        selected: (n,) bool.
        true_labels: (n,) int64, -1 where unknown; the columns true_class and correct are empty there.
        classes: C names.
        files: of all training images, if they are files; they add a column.
    """
    confidence, labels = probabilities.max(dim=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [csv_text(name) for name in classes]
    header = ["index", "predicted_class", "confidence", "selected", "true_class", "correct"]
    writer.writerow(header + ["file"] * (files is not None))
    columns = (index, labels, confidence, selected, true_labels)
    for i, label, p, chosen, true in zip(*(column.tolist() for column in columns), strict=True):
        known = [names[true], int(label == true)] if true >= 0 else ["", ""]
        row = [i, names[label], f"{p:.6f}", int(chosen), *known]
        writer.writerow(row + ([] if files is None else [csv_path(files[i])]))
    return text.getvalue()


def expected_calibration_error(probabilities: Tensor, true_labels: Tensor) -> float:
    """Return the mean of |accuracy - confidence|, in [0, 1], over bins of equal width (Guo et al., arXiv:1706.04599).

    Args:
        probabilities: (n, C), n above 0.
        true_labels: (n,) int64, all known.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    correct = (predicted == true_labels).double()
    bins = ((confidence * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)  # bin i is (i / 15, (i + 1) / 15]
    gaps = bins.bincount(correct - confidence, minlength=NUM_BINS)  # sum of differences in each bin
    return gaps.abs().sum().item() / len(true_labels)
