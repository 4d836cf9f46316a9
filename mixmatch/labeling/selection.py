"""The pictures of a labeling page: those to label, and labeled ones to review, the most doubtful first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixmatch.data.folder.index import (
    UNKNOWN_CLASS,
    FolderIndex,
    check_paths_exist,
    find_images,
    has_train_folder,
    index_folder,
    picture_suffixes,
)
from mixmatch.data.stored_images import Images
from mixmatch.errors import UserError
from mixmatch.inference import Classifier
from mixmatch.labeling.choose import Choice, choose
from mixmatch.labeling.wrong_labels import predict_out_of_fold

LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class Item:
    """A picture on the page.

    Attributes:
        file: the picture.
        path: in the labels file.
        guess: the class that the network finds most likely, or, for a labeled picture, a classifier that did not see
            its label.
        confidence: the probability of ``guess``.
        label: the class that the picture has already; None: it is to be labeled.
        group: in the labels file; empty: none.
    """

    file: Path
    path: str
    guess: int
    confidence: float
    label: int | None
    group: str


@dataclass(frozen=True)
class Selection:
    """What a page shows.

    Attributes:
        items: pictures to label, then labeled ones, those first whose label the others contradict most.
        classes: names: those of the network, then others that have labels.
        other_labels: path, class and group of pictures that are not on the page, for the labels file.
        num_chosen: number of pictures to label.
        num_unlabeled: of how many they are.
        num_contradicted: number of labels that the others contradict, also of pictures that are not on the page.
    """

    items: list[Item]
    classes: list[str]
    other_labels: list[tuple[str, str, str]]
    num_chosen: int
    num_unlabeled: int
    num_contradicted: int


def index_pictures(root: Path, labels: str | None = None, min_classes: int = 0) -> FolderIndex:
    """Return the pictures of a folder, with the labels of ``LABELS_FILE`` in it if that exists.

    Args:
        root: the folder. Without a folder ``train`` and without labels, all pictures in it are unlabeled.
        labels: the labels file that was used in training.
        min_classes: see ``index_folder``; whoever begins to label has none.

    Raises:
        UserError: if the folder or the labels file cannot be read.
    """
    used = LABELS_FILE if (root / LABELS_FILE).exists() else labels
    check_paths_exist([root])
    if used or has_train_folder(root):
        index = index_folder(root, used, min_classes)
        if labels not in (None, used):
            index.notes.append(f"{root / LABELS_FILE}: is used, not data.labels={labels}; move it away to use that")
        if index.problems:
            raise UserError(index.problems[0])
    else:
        index, suffixes = FolderIndex(root), picture_suffixes()
        index.files = [file for file in find_images(root) if file.suffix.lower() in suffixes]
        index.paths = [index.relative_path(file) for file in index.files]
        index.labels, index.groups = [UNKNOWN_CLASS] * len(index.files), [""] * len(index.files)
        index.num_train = len(index.files)
    for path in index.paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UserError(f"{root / path}: its name is not UTF-8, as a labels file must be; rename it") from None
    return index


def select_pictures(
    model: Classifier, index: FolderIndex, numbers: Sequence[int], images: Images, count: int, how: Choice
) -> Selection:
    """Choose the pictures of a page.

    Args:
        model: the network.
        index: of the folder.
        numbers: the n training files of the index that can be read, not those for validation.
        images: (n, size, size, channels) uint8, of these files.
        count: the most pictures to label, and the most labeled ones to review.
        how: see ``choose``.

    Raises:
        UserError: if there are no pictures.
    """
    classes = [*model.classes, *(name for name in index.classes if name not in model.classes)]
    class_numbers = [classes.index(name) for name in index.classes]
    labels = [None if label == UNKNOWN_CLASS else class_numbers[label] for label in index.labels]
    unlabeled = [row for row, number in enumerate(numbers) if labels[number] is None]
    if not numbers:
        raise UserError(f"{index.root}: has no pictures to label; give another folder")
    features = model.embed(images)
    with torch.no_grad():
        probabilities = model.network.dense(features).softmax(dim=1).cpu().numpy()
    points = features.cpu().numpy()
    chosen = list[int]()
    if unlabeled:
        chosen = [unlabeled[number] for number in choose(probabilities[unlabeled], points[unlabeled], count, how)]
    guesses = {row: (int(probabilities[row].argmax()), float(probabilities[row].max())) for row in chosen}
    frequencies = Counter(labels[number] for number in numbers)  # one label alone cannot be predicted from others
    labeled = [p for p, number in enumerate(numbers) if labels[number] is not None and frequencies[labels[number]] > 1]
    given = np.array([labels[numbers[row]] for row in labeled])
    doubts = dict[int, float]()
    if (predicted := predict_out_of_fold(points[labeled], given)) is not None:
        present = np.unique(given)
        for row, label, outputs in zip(labeled, given, predicted, strict=True):
            guesses[row] = int(present[outputs.argmax()]), float(outputs.max())
            doubts[row] = float(outputs[present == label][0])
    shown_rows = [*chosen, *sorted(doubts, key=doubts.__getitem__)[:count]]
    items = []
    for row in shown_rows:
        number, (guess, confidence) = numbers[row], guesses[row]
        path, group = index.paths[number], index.groups[number]
        items.append(Item(index.files[number], path, guess, confidence, labels[number], group))
    shown = {numbers[row] for row in shown_rows}
    others = [
        (path, "" if label is None else classes[label], group)
        for number, (path, label, group) in enumerate(zip(index.paths, labels, index.groups, strict=True))
        if (label is not None or group) and number not in shown
    ]
    contradicted = sum(guesses[row][0] != labels[numbers[row]] for row in doubts)
    return Selection(items, classes, others, len(chosen), len(unlabeled), contradicted)
