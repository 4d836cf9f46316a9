"""Which images are labeled, unlabeled and held out: a function of seed and counts alone.

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

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.errors import UserError, describe_error
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


def make_split(data: ImageData, settings: DataSettings, seed: int) -> Split:
    """Draw the split that ``settings`` ask for.

    Labels are dealt equally to the classes, or by their shares where the data set says so (``ImageData.by_share``). Of
    each class's images in random order, the labeled are the first and the validation images the last: with the same
    seed, 250 labels are among the 4000, and the validation set is the same. Groups go to validation whole, in random
    order, until each class has as many images there as were asked for; their other images serve nothing. Where the data
    set has folds of just so many labels, the one of the seed is labeled.

    Args:
        data: images whose class is not known, -1, only ever serve as unlabeled.
        settings: the ``data`` section. ``num_labeled``: in all, or ``all`` that have a known class and are not for
            validation. ``num_validation``: in all; ``auto``: of each class one for every four that are labeled of the
            class that has fewest, if that leaves 25 of it, else none.
        seed: of the draw.

    Raises:
        UserError: if a count cannot be had.
    """
    labels = data.labels.numpy()
    known = np.bincount(labels[labels >= 0], minlength=len(data.classes))
    fold = _find_fold(data, settings, seed)
    want = _deal("data.num_labeled", settings.num_labeled, data, known)
    num_validation = settings.num_validation
    if num_validation == "auto":
        num_validation = _choose_validation(data, known, want, seed)
    held_out = _deal("data.num_validation", num_validation, data, known)
    labeled, validation = [], []
    together = _hold_out_groups(data.groups, labels, held_out, seed)
    for number, name in enumerate(data.classes):
        members = np.flatnonzero(labels == number)
        held_out_here = int(together[members].sum())
        available = len(members) - max(held_out[number], held_out_here)
        least = 1 if settings.num_labeled == "all" else want[number]
        if available < least:
            key, ask = ("data.num_validation", held_out) if available < 1 else ("data.num_labeled", want)
            each = f"class {name!r} are too many: it" if data.by_share else f"each class are too many: class {name!r}"
            raise UserError(
                f"{key}: {ask[number]} images of {each} has {len(members)}"
                + (f", {held_out[number]} of them for validation" if held_out.any() and ask is want else "")
                + (f" ({held_out_here} with their groups)" if held_out_here > held_out[number] else "")
            )
        members = members[np.random.RandomState([seed, number]).permutation(len(members))]
        # Those of the fold first, those held out with their groups last.
        members = members[np.argsort(together[members].astype(int) - fold[members], kind="stable")]
        labeled.append(members[: min(available, want[number])])
        validation.append(members[available:])
    labeled, validation = np.sort(np.concatenate(labeled)), np.sort(np.concatenate(validation))
    unlabeled = np.ones(len(labels), dtype=bool)
    unlabeled[validation] = False
    unlabeled[together] = False
    if not settings.labeled_as_unlabeled:
        unlabeled[labeled] = False
    unlabeled = np.flatnonzero(unlabeled)
    return Split(data.name, data.fingerprint(), labeled.tolist(), unlabeled.tolist(), validation.tolist(), data.files)


def deal(shares: np.ndarray, count: int) -> np.ndarray:
    """Deal ``count`` labels one by one, each to the class that lags most behind its share, as the authors do.

    Args:
        shares: (C,) of the classes, in any unit.
        count: in all.

    Returns:
        (C,) int64. Every class has one before any has two.
    """
    shares, dealt = shares / shares.max(), np.zeros(len(shares), dtype=np.int64)
    for _ in range(count):  # scripts/create_split.py of google-research/mixmatch
        dealt[np.argmax(shares - dealt / max(dealt.max(), 1))] += 1
    return dealt


def _deal(key: str, count: int | Literal["all"], data: ImageData, known: np.ndarray) -> np.ndarray:
    """Return how many images of each class are asked for, (C,)."""
    num_classes = len(data.classes)
    if count == "all":
        return known
    if data.by_share:
        if count > known.sum():
            raise UserError(f"{key}: {count} are too many: {data.name} has {known.sum()} images whose class is known")
        if 0 < count < num_classes and key == "data.num_labeled":
            raise UserError(f"{key}: must be at least one for each of the {num_classes} classes, got {count}")
        return deal(known, count)
    if count % num_classes:
        raise UserError(
            f"{key}: must be divisible by the {num_classes} classes of {data.name}, got {count}; "
            f"the nearest are {count - count % num_classes} and {count - count % num_classes + num_classes}"
        )
    return np.full(num_classes, count // num_classes)


def _find_fold(data: ImageData, settings: DataSettings, seed: int) -> np.ndarray:
    """Return which images are of the fold to be labeled, (n,) bool: none where the data set has none of that size."""
    fold = np.zeros(len(data.labels), dtype=bool)
    if data.folds and settings.num_labeled == len(data.folds[0]):
        fold[data.folds[seed % len(data.folds)]] = True
    return fold


def _choose_validation(data: ImageData, known: np.ndarray, want: np.ndarray, seed: int) -> int:
    everything = want is known
    each = int(known.min()) // 5 if everything else max(0, min(int(want.min()) // 4, int((known - want).min())))
    left = int(known.min()) - each if everything else int(want.min())
    if left < AUTO_LEAVES:
        return 0
    labels, count = data.labels.numpy(), len(known) * each
    together = _hold_out_groups(data.groups, labels, _deal("data.num_validation", count, data, known), seed)
    kept = known - np.bincount(labels[together & (labels >= 0)], minlength=len(known))
    return 0 if (kept < (AUTO_LEAVES if everything else want)).any() else count


def _hold_out_groups(groups: Sequence[str] | None, labels: np.ndarray, held_out: np.ndarray, seed: int) -> np.ndarray:
    """Return which images are held out with their groups, (n,) bool: at least ``held_out`` (C,) of the classes.

    Groups that bring more than is missing of a class are taken only if the others do not suffice, smaller ones first.
    An image without a group is one by itself.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    if groups is None or not held_out.any():
        return chosen
    names = [group or f"\0{index}" for index, group in enumerate(groups)]
    _, numbers = np.unique(names, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    missing, num_classes = held_out.copy(), len(held_out)
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


def read_split(path: Path, data: ImageData) -> Split:
    """Read a split file and check that it fits the training images.

    Raises:
        UserError: if the file cannot be read, is no split, or belongs to other images.
    """
    try:
        split = TypeAdapter(Split).validate_python(json.loads(read_file(path)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a split file is needed there") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no split file ({describe_error(error)})") from None
    labels = data.labels.numpy()
    if split.fingerprint != data.fingerprint():
        raise UserError(f"{path}: belongs to other images than those found now ({_changes(split.files, data.files)})")
    for name in ("labeled", "unlabeled", "validation"):
        indices = getattr(split, name)
        if len(set(indices)) < len(indices) or not all(0 <= index < len(labels) for index in indices):
            raise UserError(f"{path}: {name} has repeated indices, or some outside 0 .. {len(labels) - 1}")
        if name != "unlabeled" and (labels[indices] < 0).any():
            raise UserError(f"{path}: {name} names images whose class is not known")
    if not split.labeled:
        raise UserError(f"{path}: names no labeled images")
    if set(split.validation) & (set(split.labeled) | set(split.unlabeled)):
        raise UserError(f"{path}: validation images are among those trained on")
    _check_groups(split, data.groups)
    return split


def _check_groups(split: Split, groups: Sequence[str] | None) -> None:
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
    return ", ".join(parts) + "; put things back, or let a new run start from this one's weights with init_from=RUN"
