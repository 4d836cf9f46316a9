"""Which images are labelled, unlabelled and held out: a function of seed and counts alone.

It is drawn by numpy's legacy RandomState, whose streams are frozen for good: the same on every machine, whatever the
version.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from mixmatch.errors import UserError, brief_error
from mixmatch.files import read_file

AUTO_LEAVES = 25  # labels a class, where the count of validation images is left to us


@dataclass(frozen=True)
class Split:
    """Indices into the training images.

    ``fingerprint`` is the data set's: indices mean something with these images only. ``files`` are the training
    images', where they are of files: index by index, for a person, and to tell what has changed.
    ``test_fingerprint`` is of the test images that accuracy is measured on; None if there are none.
    """

    dataset: str
    fingerprint: str
    labeled: list[int]
    unlabeled: list[int]
    validation: list[int]
    files: list[str] | None = None
    test_fingerprint: str | None = None

    def to_json(self) -> str:
        """Return the text of a split file."""
        values = asdict(self)
        return json.dumps({name: value for name, value in values.items() if value is not None}) + "\n"


def make_split(
    dataset: str,
    fingerprint: str,
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int,
    num_labeled: int | Literal["all"],
    num_validation: int | Literal["auto"],
    labeled_as_unlabeled: bool,
    groups: Sequence[str] | None = None,
    files: list[str] | None = None,
) -> Split:
    """Draw a class-balanced split.

    Of each class's images in random order, the labelled are the first and the validation images the last: with
    the same seed, 250 labels are among the 4000, and the validation set is the same. Groups go to validation whole, in
    random order, until each class has as many images there as were asked for; their other images serve nothing.

    Args:
        dataset, fingerprint: stored in the split.
        labels: (n,) class of every training image, -1 where unknown: these only ever serve as unlabelled.
        classes: names, for messages.
        seed: of the draw.
        num_labeled: in all, or ``all`` that have a known class and are not for validation.
        num_validation: in all; ``auto``: of each class one for every four that are labelled of the class that has
            fewest, if that leaves 25 of it, else none.
        labeled_as_unlabeled: whether the labelled images are among the unlabelled too.
        groups: of every training image, see ``ImageData``.
        files: stored in the split.

    Raises:
        UserError: if a count cannot be had.
    """
    if num_validation == "auto":
        num_validation = _choose_validation(labels, len(classes), seed, num_labeled, groups)
    per_class = {}
    for key, count in {"data.num_labeled": num_labeled, "data.num_validation": num_validation}.items():
        if count != "all" and count % len(classes):
            raise UserError(
                f"{key}: must be divisible by the {len(classes)} classes of {dataset}, got {count}; "
                f"the nearest are {count - count % len(classes)} and {count - count % len(classes) + len(classes)}"
            )
        per_class[key] = count if count == "all" else count // len(classes)
    want, held_out = per_class.values()
    labeled, validation = [], []
    together = _hold_out_groups(groups, labels, len(classes), seed, held_out)
    for number, name in enumerate(classes):
        members = np.flatnonzero(labels == number)
        held_out_here = int(together[members].sum())
        available = len(members) - max(held_out, held_out_here)
        if available < (1 if want == "all" else want):
            key, ask = ("data.num_validation", held_out) if available < 1 else ("data.num_labeled", want)
            raise UserError(
                f"{key}: {ask} images of each class are too many: class {name!r} has {len(members)}"
                + (f", {held_out} of them for validation" if held_out and key == "data.num_labeled" else "")
                + (f" ({held_out_here} with their groups)" if held_out_here > held_out else "")
            )
        members = members[np.random.RandomState([seed, number]).permutation(len(members))]
        members = members[np.argsort(together[members], kind="stable")]  # those held out last
        labeled.append(members[: available if want == "all" else want])
        validation.append(members[available:])
    labeled, validation = np.sort(np.concatenate(labeled)), np.sort(np.concatenate(validation))
    unlabeled = np.ones(len(labels), dtype=bool)
    unlabeled[validation] = False
    unlabeled[together] = False
    if not labeled_as_unlabeled:
        unlabeled[labeled] = False
    unlabeled = np.flatnonzero(unlabeled)
    return Split(dataset, fingerprint, labeled.tolist(), unlabeled.tolist(), validation.tolist(), files)


def _choose_validation(
    labels: np.ndarray, num_classes: int, seed: int, num_labeled: int | Literal["all"], groups: Sequence[str] | None
) -> int:
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    if num_labeled == "all":
        each = counts.min() // 5
        left = counts.min() - each
    else:
        left = num_labeled // num_classes
        each = max(0, min(left // 4, counts.min() - left))
    if left < AUTO_LEAVES:
        return 0
    together = _hold_out_groups(groups, labels, num_classes, seed, int(each))
    kept = counts - np.bincount(labels[together & (labels >= 0)], minlength=num_classes)
    return 0 if (kept < (AUTO_LEAVES if num_labeled == "all" else left)).any() else num_classes * int(each)


def _hold_out_groups(
    groups: Sequence[str] | None, labels: np.ndarray, num_classes: int, seed: int, held_out: int
) -> np.ndarray:
    """Return which images are held out with their groups, (n,) bool: at least ``held_out`` of each class.

    Groups that bring more than is missing of a class are taken only if the others do not suffice, smaller ones first.
    An image without a group is one by itself.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    if groups is None or not held_out:
        return chosen
    names = [group or f"\0{index}" for index, group in enumerate(groups)]
    _, numbers = np.unique(names, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    missing = np.full(num_classes, held_out)
    order = np.random.RandomState([seed, num_classes]).permutation(len(members))
    by_size = sorted(order, key=lambda i: len(members[i]))
    for exact, places in ((True, order), (False, by_size)):
        for i in places:
            counts = np.bincount(labels[members[i]][labels[members[i]] >= 0], minlength=num_classes)
            wanted = (counts[missing > 0] > 0).any() and not chosen[members[i][0]]
            if wanted and not (exact and (counts > missing).any()):
                chosen[members[i]] = True
                missing -= counts
    return chosen


def read_split(path: Path, fingerprint: str, labels: np.ndarray, files: list[str] | None = None) -> Split:
    """Read a split file and check that it fits the training images, which are of ``files`` or of none.

    Raises:
        UserError: if the file cannot be read, is no split, or belongs to other images.
    """
    try:
        split = TypeAdapter(Split).validate_python(json.loads(read_file(path)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a split file is needed there") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no split file ({brief_error(error)})") from None
    if split.fingerprint != fingerprint:
        raise UserError(f"{path}: belongs to other images than those found now ({_changes(split.files, files)})")
    for name in ("labeled", "unlabeled", "validation"):
        indices = getattr(split, name)
        if len(set(indices)) < len(indices) or not all(0 <= index < len(labels) for index in indices):
            raise UserError(f"{path}: {name} has repeated indices, or some outside 0 .. {len(labels) - 1}")
        if name != "unlabeled" and (labels[indices] < 0).any():
            raise UserError(f"{path}: {name} names images whose class is not known")
    if not split.labeled:
        raise UserError(f"{path}: names no labelled images")
    if set(split.validation) & (set(split.labeled) | set(split.unlabeled)):
        raise UserError(f"{path}: validation images are among those trained on")
    return split


def check_groups(split: Split, groups: Sequence[str] | None) -> None:
    """See that no group is in validation and trained on.

    Raises:
        UserError: naming one that is.
    """
    if groups is None:
        return
    held = {groups[i] for i in split.validation} - {""}
    both = sorted(held & {groups[i] for i in (*split.labeled, *split.unlabeled)})
    if both:
        raise UserError(
            f"data.labels: {len(both)} groups, such as {both[0]!r}, are in validation and trained on in this split; "
            "let a new run draw its own"
        )


def _changes(then: list[str] | None, now: list[str] | None) -> str:
    """Say in what images differ from those of a split."""
    if then is None or now is None:
        return "the fingerprints differ"
    new, missing = sorted({*now} - {*then}), sorted({*then} - {*now})
    parts = [
        f"{len(names)} {'is' if len(names) == 1 else 'are'} {what}, such as {names[0]}"
        for names, what in ((new, "new"), (missing, "missing"))
        if names
    ]
    if not parts:
        return "the same files, but pixels or classes have changed"
    return ", ".join(parts) + "; put things back, or let a new run start from this one's weights with init=RUN"
