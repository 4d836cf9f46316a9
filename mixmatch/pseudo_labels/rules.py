"""Rules that turn predictions into pseudo-labels, and what tells how many of these are right.

A rule is a function of predicted probabilities alone. The true classes of unlabeled images reach none of them: they
serve the statistics only.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixmatch.config import PseudoLabelSettings
from mixmatch.evaluation import confusion_matrix
from mixmatch.files import csv_path, csv_text

THRESHOLDS = (0.9, 0.95, 0.97, 0.99, 0.999)
SINKHORN_STEPS = 100


class Selection(NamedTuple):
    """Which of n predictions become labels, and which labels."""

    chosen: Tensor  # (n,) bool
    labels: Tensor  # (n,) int64


def select_none(probabilities: Tensor, prior: Tensor, settings: PseudoLabelSettings) -> Selection:
    """The control: nothing is selected."""
    labels = probabilities.argmax(dim=1)
    return Selection(torch.zeros_like(labels, dtype=torch.bool), labels)


def select_all(probabilities: Tensor, prior: Tensor, settings: PseudoLabelSettings) -> Selection:
    """What a method labels by itself as it trains: every image. Described at the start and the end, never fixed."""
    labels = probabilities.argmax(dim=1)
    return Selection(torch.ones_like(labels, dtype=torch.bool), labels)


def select_threshold(probabilities: Tensor, prior: Tensor, settings: PseudoLabelSettings) -> Selection:
    """Select every prediction whose confidence, its largest probability, is at least ``settings.threshold``."""
    confidence, labels = probabilities.max(dim=1)
    return Selection(confidence >= settings.threshold, labels)


def select_top(probabilities: Tensor, prior: Tensor, settings: PseudoLabelSettings) -> Selection:
    """Select the most confident ``settings.fraction`` of each predicted class, rounded up, ties with the last too."""
    confidence, labels = probabilities.max(dim=1)
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for number in range(probabilities.shape[1]):
        members = labels == number
        count = math.ceil(settings.fraction * int(members.sum()))
        if count:
            least = confidence[members].topk(count).values[-1]
            chosen |= members & (confidence >= least)
    return Selection(chosen, labels)


def select_balanced(probabilities: Tensor, prior: Tensor, settings: PseudoLabelSettings) -> Selection:
    """As ``select_top``, of predictions brought to the class shares of the labeled images.

    A network that has taken half of one class for another predicts too many of the one and too few of the other.
    Scaling rows and columns in turn (Sinkhorn) gives the nearest table of probabilities, in relative entropy, in which
    each class gets its share: the least certain members of the class that has too many move over.
    """
    return select_top(balance(probabilities, prior), prior, settings)


def balance(probabilities: Tensor, prior: Tensor) -> Tensor:
    """Scale rows and columns of (n, C) probabilities until each row sums to 1 and column c to n * ``prior[c]``."""
    table = probabilities.double().clamp_min(1e-12)
    for _ in range(SINKHORN_STEPS):
        table = table * (len(table) * prior / table.sum(dim=0).clamp_min(1e-300))
        table = table / table.sum(dim=1, keepdim=True)
    return table


RULES: dict[str, Callable[[Tensor, Tensor, PseudoLabelSettings], Selection]] = {
    "none": select_none,
    "threshold": select_threshold,
    "top": select_top,
    "balanced": select_balanced,
    "method": select_all,
}


def select(probabilities: Tensor, prior: Tensor, settings: PseudoLabelSettings) -> Selection:
    """Apply the rule that ``settings.select`` names.

    Args:
        probabilities: (n, C) predictions of the unlabeled images, rows sum to 1.
        prior: (C,) shares of the classes among the labeled images.
        settings: the ``pseudo_label`` section.
    """
    return RULES[settings.select](probabilities, prior, settings)


def threshold_table(probabilities: Tensor, truth: Tensor) -> list[dict[str, float | int | None]]:
    """Count, for each of ``THRESHOLDS``, predictions at least so confident, and how many are correct.

    Args:
        probabilities: (n, C).
        truth: (n,) true classes, -1 where unknown.

    Returns:
        Entries with ``threshold``, ``generated``, ``correct`` and ``precision`` (percent); the last two are None where
        no truth is known, and ``precision`` where nothing was generated. Both count images of known truth alone.
    """
    confidence, labels = probabilities.max(dim=1)
    table = []
    for threshold in THRESHOLDS:
        generated = confidence >= threshold
        table.append(
            {"threshold": threshold, "generated": int(generated.sum()), **_precision(generated, labels, truth)}
        )
    return table


def describe_selection(selection: Selection, truth: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return how many predictions were selected, their coverage and precision (percent), in all and for each class."""
    chosen, labels = selection
    entry: dict[str, Any] = {
        "candidates": len(chosen),
        "selected": int(chosen.sum()),
        "coverage": 100 * chosen.float().mean().item() if len(chosen) else 0.0,
        **_precision(chosen, labels, truth),
        "classes": {},
    }
    for number, name in enumerate(classes):
        members = chosen & (labels == number)
        entry["classes"][name] = {"selected": int(members.sum()), **_precision(members, labels, truth)}
    return entry


def _precision(chosen: Tensor, labels: Tensor, truth: Tensor) -> dict[str, float | int | None]:
    known = chosen & (truth >= 0)
    correct = int((known & (labels == truth)).sum())
    if not (truth >= 0).any():
        return {"correct": None, "precision": None}
    return {"correct": correct, "precision": 100 * correct / int(known.sum()) if known.any() else None}


def confusion(selection: Selection, truth: Tensor, num_classes: int) -> Tensor:
    """Return the (C, C) counts of true class (rows) and label (columns) among selected images of known truth."""
    known = selection.chosen & (truth >= 0)
    return confusion_matrix(truth[known], selection.labels[known], num_classes)


def to_csv(
    index: Tensor,
    probabilities: Tensor,
    selection: Selection,
    truth: Tensor,
    classes: Sequence[str],
    files: Sequence[str] | None = None,
) -> str:
    """Return pseudo_labels.csv: a line for each prediction, in the order of the training set.

    The columns are index (into the training set), predicted_class, confidence, selected, label (the class it was
    selected as, which a rule may make another than the predicted), where known true_class and correct, and, of images
    that are of files, file.
    """
    confidence, predicted = probabilities.max(dim=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [csv_text(name) for name in classes]
    head = ["index", "predicted_class", "confidence", "selected", "label", "true_class", "correct"]
    writer.writerow(head + ["file"] * (files is not None))
    columns = [index, predicted, confidence, selection.chosen, selection.labels, truth]
    for i, guess, sure, chosen, label, true in zip(*(column.tolist() for column in columns), strict=True):
        known = [names[true], int(label == true)] if true >= 0 else ["", ""]
        row = [i, names[guess], f"{sure:.6f}", int(chosen), names[label], *known]
        writer.writerow(row + ([csv_path(files[i])] if files is not None else []))
    return text.getvalue()
