"""The CSV table of predictions, and what is computed from its rows."""

import csv
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import BinaryIO

from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from mixmatch.cli.part_file import UNREADABLE, ListedFile, Prediction
from mixmatch.data.folder.index import PREDICTION_COLUMNS
from mixmatch.errors import single_line
from mixmatch.files import csv_path, csv_text

MAX_PROBLEMS = 5  # that are printed
UNCERTAIN = -2  # stands for the class of a file below the minimum confidence


@dataclass
class Summary:
    """What is needed of the rows when the table is complete.

    Attributes:
        labels: the predicted class of each file, or UNREADABLE or UNCERTAIN.
        problems: of the first files that could not be read, with their paths.
        num_multi_page: number of files with several pages.
    """

    labels: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_multi_page: int = 0

    @property
    def num_images(self) -> int:
        """Number of files that could be read."""
        return len(self.labels) - self.labels.count(UNREADABLE)


def write_table(
    file: BinaryIO,
    predictions: Iterable[Prediction],
    classes: Sequence[str],
    min_confidence: float = 0,
) -> Summary:
    """Write the CSV table and return its summary."""
    summary, text = Summary(), TextIOWrapper(file, encoding="utf-8", newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*PREDICTION_COLUMNS, *map(csv_text, classes)])
    for prediction in predictions:
        uncertain = not prediction.problem and max(prediction.probabilities) < min_confidence
        label = UNCERTAIN if uncertain else prediction.label
        table.writerow(to_row(prediction, label, classes))
        summary.labels.append(label)
        summary.num_multi_page += prediction.pages > 1
        if prediction.problem and len(summary.problems) < MAX_PROBLEMS:
            summary.problems.append(f"{prediction.file.path}: {prediction.problem}")
    text.detach()  # flushes without closing
    return summary


def to_row(prediction: Prediction, label: int, classes: Sequence[str]) -> list[str]:
    """Return a row of the table: file, class, confidence, true class, problem, and the probability of each class.

    The class is empty if ``label`` is UNCERTAIN: such a file is unlabeled if the table is used as ``data.labels``.
    A cell that a spreadsheet would take for a formula is prefixed: a path with ``./``, other text with an apostrophe.
    """
    path, true_label = csv_path(prediction.file.name), prediction.file.true_label
    true_class = "" if true_label is None else csv_text(classes[true_label])
    if prediction.problem:
        return [path, "", "", true_class, csv_text(prediction.problem), *[""] * len(classes)]
    probabilities = [f"{probability:.6f}" for probability in prediction.probabilities]
    name = "" if label == UNCERTAIN else csv_text(classes[label])
    return [path, name, max(probabilities), true_class, "", *probabilities]


def print_summary(
    files: Sequence[ListedFile],
    summary: Summary,
    classes: Sequence[str],
    trained_on: Collection[str],
    knows_all: bool,
) -> None:
    """Print the accuracy on files whose class is known, and how many are uncertain, unreadable, or of several pages.

    Args:
        files: the files.
        summary: of their predictions.
        classes: names.
        trained_on: real paths of files that do not count for the accuracy.
        knows_all: whether these are all that the network was trained on.
    """
    known = [
        (file, file.true_label, label)
        for file, label in zip(files, summary.labels, strict=True)
        if file.true_label is not None and label not in (UNREADABLE, UNCERTAIN)
    ]
    labels = [(true, label) for file, true, label in known if os.path.realpath(file.path) not in trained_on]
    if labels:
        print(describe_accuracy(labels, classes))
        if not knows_all:
            print(
                "note: it is not known whether some of these files are training images; if so, the accuracy is too high"
            )
    if len(labels) < len(known):
        print(f"files that do not count, because the network was trained on them: {len(known) - len(labels)}")
    if num_uncertain := summary.labels.count(UNCERTAIN):
        print(f"{num_uncertain} of {len(files)} files are below --min-confidence: no class, not part of the accuracy")
    if summary.num_multi_page:
        print(f"files with several pages, of which the first was used: {summary.num_multi_page}")
    if num_unreadable := len(files) - summary.num_images:
        print(f"{num_unreadable} of {len(files)} files could not be read; see the column problem")
        for problem in summary.problems:
            print(f"  {single_line(problem)}")
        if num_unreadable > len(summary.problems):
            print(f"  and {num_unreadable - len(summary.problems)} more")


def describe_accuracy(labels: Sequence[tuple[int, int]], classes: Sequence[str]) -> str:
    """Return accuracy, balanced accuracy (the mean recall), and precision and recall of each class that has files.

    Args:
        labels: true and predicted label of each file.
        classes: names.
    """
    true, predicted = zip(*labels, strict=True)
    present = sorted(set(true))  # a class without files has no recall
    columns = precision_recall_fscore_support(true, predicted, labels=present, zero_division=0)
    names = [single_line(classes[label]) for label in present]
    width = max(len(name) for name in (*names, "class"))
    lines = [f"{'class':<{width}}  precision  recall  f1-score  files"]
    lines += [
        f"{name:<{width}}  {precision:>9.3f}  {recall:>6.3f}  {f1:>8.3f}  {count:>5}"
        for name, precision, recall, f1, count in zip(names, *columns, strict=True)
    ]
    return (
        f"accuracy {100 * accuracy_score(true, predicted):.2f}% of {len(labels)} files whose class is known, "
        f"balanced accuracy {100 * columns[1].mean():.2f}%\n" + "\n".join(lines)
    )
