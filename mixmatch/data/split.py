"""The split into labeled, unlabeled and validation images, a function of seed and counts alone.

It is sampled with numpy's legacy RandomState, whose streams never change between versions or machines.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.stored_images import select
from mixmatch.errors import UserError, describe_error

MIN_LABELS_WITH_AUTO = 25  # labels that num_validation=auto leaves each class
TEST_SEED = 0  # of the test set, so that accuracies of runs with different seeds are of the same images

IntArray = NDArray[np.int64]
Mask = NDArray[np.bool_]
RESTORE_ADVICE = "restore them, or start a new run from this one's weights with init_from=RUN"


@dataclass(frozen=True)
class Split:
    """Indices into the training images.

    Attributes:
        dataset: its name.
        fingerprint: of the training images that the indices refer to.
        labeled, unlabeled, validation: sorted indices.
        files: paths of all training images, index by index; None if images are not files.
        test_files: paths of the test images, if ``data.num_test`` sampled them.
        test_fingerprint: of the test images that accuracy is measured on; None if there are none.
        classes: names.
    """

    dataset: str
    fingerprint: str
    labeled: list[int]
    unlabeled: list[int]
    validation: list[int]
    files: list[str] | None = None
    test_files: list[str] | None = None
    test_fingerprint: str | None = None
    classes: list[str] | None = None

    def to_json(self) -> str:
        """Return the text of a split file."""
        values = asdict(self)
        return json.dumps({name: value for name, value in values.items() if value is not None}) + "\n"


def make_split(data: ImageData, settings: DataSettings, seed: int) -> Split:
    """Sample the split that ``settings`` ask for.

    Labels are allocated to classes equally, or by class frequency (``ImageData.by_share``). The images of a class are
    shuffled; the first are labeled and the last are for validation. So with the same seed, the 250 labeled images are
    among the 4000, and the validation set is the same. A group goes to validation as a whole, until each class has the
    number of validation images asked for; surplus images of these groups are unused. If the data set has folds of
    ``num_labeled`` images, the fold of the seed is labeled. Validation images of the data set's own are kept. With
    ``ImageData.authors_split`` the labeled images are those of the authors' split with this seed, above 0.

    Args:
        data: images of unknown class (-1) only serve as unlabeled.
        settings: the ``data`` section; in ``labeled_as_unlabeled``, ``auto`` counts as false.
        seed: of the sampling.

    Raises:
        UserError: if there are not enough images.
    """
    if data.validation is not None:
        return _split_around(data, data.validation, settings, seed)
    labels = data.labels.numpy()
    class_sizes = np.bincount(labels[labels >= 0], minlength=len(data.classes))
    num_labeled = _count_per_class("data.num_labeled", settings.num_labeled, data, class_sizes)
    if settings.num_validation == "auto":
        num_validation = _choose_num_validation(data, class_sizes, num_labeled, settings.num_labeled == "all", seed)
    else:
        num_validation = _count_per_class("data.num_validation", settings.num_validation, data, class_sizes)
    held_out = _hold_out_groups(data.groups, labels, num_validation, seed)
    fold = np.zeros(len(labels), dtype=bool)
    if data.folds and settings.num_labeled == len(data.folds[0]):
        fold[data.folds[seed % len(data.folds)]] = True
    labeled_parts, validation_parts = [], []
    authors = np.random.RandomState(seed)  # in google-research/mixmatch's create_split.py it shuffles all classes
    for number, name in enumerate(data.classes):
        members = np.flatnonzero(labels == number)
        reserved = max(num_validation[number], int(held_out[members].sum()))
        available = len(members) - reserved
        needed = 1 if settings.num_labeled == "all" else num_labeled[number]
        if not len(members):
            raise UserError(f"data: class {name!r} has no labeled image; label some, or remove the class")
        if available < needed:
            raise UserError(
                f"data.num_labeled: class {name!r} has {len(members)} images, {reserved} of them for validation, but "
                f"needs {needed} for training; lower data.num_labeled or data.num_validation"
            )
        generator = authors if data.authors_split else np.random.RandomState([seed, number])
        members = members[generator.permutation(len(members))]
        # The fold first, held-out groups last.
        members = members[np.argsort(held_out[members].astype(int) - fold[members], kind="stable")]
        labeled_parts.append(members[: min(available, num_labeled[number])])
        validation_parts.append(members[available:])
    labeled, validation = np.sort(np.concatenate(labeled_parts)), np.sort(np.concatenate(validation_parts))
    is_unlabeled = ~held_out
    is_unlabeled[validation] = False
    if settings.labeled_as_unlabeled is not True:
        is_unlabeled[labeled] = False
    unlabeled = np.flatnonzero(is_unlabeled)
    return Split(
        data.name,
        data.fingerprint(),
        labeled.tolist(),
        unlabeled.tolist(),
        validation.tolist(),
        data.files,
        data.test_files,
        classes=data.classes,
    )


def hold_out_test(data: ImageData, settings: DataSettings) -> ImageData:
    """Move ``data.num_test`` training images to the test set; a function of the images, not of the run's seed.

    Groups are moved as a whole, as ``make_split`` does. Images of unknown class in such groups are left out.

    Args:
        data: without a test set if ``num_test`` is above 0.
        settings: the ``data`` section.

    Raises:
        UserError: if there is a test set already, or a class has too few images.
    """
    if not settings.num_test:
        return data
    if data.test_labels is not None:
        raise UserError(f"data.num_test: {data.name} has {len(data.test_labels)} test images already; set it to 0")
    if data.validation is not None:
        raise UserError("data.num_test: the data set has validation images of its own; put test images into test/, too")
    labels = data.labels.numpy()
    class_sizes = np.bincount(labels[labels >= 0], minlength=len(data.classes))
    if isinstance(settings.num_test, float):
        num_test = np.maximum(1, np.rint(settings.num_test * class_sizes).astype(np.int64))
    else:
        num_test = _count_per_class("data.num_test", settings.num_test, data, class_sizes)
    held_out = _hold_out_groups(data.groups or [""] * len(labels), labels, num_test, TEST_SEED)
    taken = np.bincount(labels[held_out & (labels >= 0)], minlength=len(data.classes))
    for name, size, asked, reserved in zip(data.classes, class_sizes, num_test, taken, strict=True):
        if max(asked, reserved) >= size:
            whole_groups = ", as groups are not divided" if reserved > asked else ""
            raise UserError(
                f"data.num_test: class {name!r} has {size} labeled images, {max(asked, reserved)} would be for testing"
                f"{whole_groups}; lower data.num_test or add images"
            )
    test, kept = np.flatnonzero(held_out & (labels >= 0)).tolist(), np.flatnonzero(~held_out).tolist()
    return replace(
        data,
        images=select(data.images, kept),
        labels=data.labels[kept],
        test_images=select(data.images, test),
        test_labels=data.labels[test],
        files=data.files and [data.files[i] for i in kept],
        test_files=data.files and [data.files[i] for i in test],
        groups=data.groups and [data.groups[i] for i in kept],
        folds=(),  # their indices are of all images
    )


def _split_around(data: ImageData, validation: list[int], settings: DataSettings, seed: int) -> Split:
    """Return the split with the validation images of the data set; the others are split as if they were alone."""
    if settings.num_validation not in (0, "auto"):
        raise UserError("data.num_validation: the data set has validation images of its own; set it to 0 or auto")
    others = np.setdiff1d(np.arange(len(data.labels)), validation)
    groups = data.groups and [data.groups[i] for i in others]
    both = sorted({*(groups or ())} & {data.groups[i] for i in validation} - {""}) if data.groups else []
    if both:
        raise UserError(f"data: group {both[0]!r} is in validation and in training; move its images into one of them")
    one = select(data.images, [0])  # the images themselves have no influence
    rest = replace(data, images=one, labels=data.labels[others], files=None, groups=groups, validation=None)
    split = make_split(rest, settings.model_copy(update={"num_validation": 0}), seed)
    return replace(
        split,
        fingerprint=data.fingerprint(),
        labeled=others[split.labeled].tolist(),
        unlabeled=others[split.unlabeled].tolist(),
        validation=sorted(validation),
        files=data.files,
    )


def allocate_labels(class_shares: IntArray, count: int) -> IntArray:
    """Allocate ``count`` labels one by one, each to the class that is furthest below its share.

    This is the loop in scripts/create_split.py of google-research/mixmatch. Every class gets one before any gets two.

    Args:
        class_shares: (C,) positive numbers in any unit.
        count: number of labels.

    Returns:
        (C,) labels for each class.
    """
    shares, allocated = class_shares / class_shares.max(), np.zeros(len(class_shares), dtype=np.int64)
    for _ in range(count):
        allocated[np.argmax(shares - allocated / max(allocated.max(), 1))] += 1
    return allocated


def _count_per_class(key: str, count: int | Literal["all"], data: ImageData, class_sizes: IntArray) -> IntArray:
    """Return how many images of each class the value ``count`` of ``key`` asks for, (C,)."""
    num_classes = len(data.classes)
    if count == "all":
        return class_sizes
    if data.by_share:
        if count > class_sizes.sum():
            raise UserError(f"{key}: {data.name} has {class_sizes.sum()} images of known class, got {count}; lower it")
        if 0 < count < num_classes and key == "data.num_labeled":
            raise UserError(f"{key}: must be at least one for each of the {num_classes} classes, got {count}")
        return allocate_labels(class_sizes, count)
    if count % num_classes:
        lower, most = count - count % num_classes, num_classes * int(class_sizes.min())
        least = num_classes if key == "data.num_labeled" else 0
        near = sorted({min(max(number, least), max(most, least)) for number in (lower, lower + num_classes)})
        nearest = f"the nearest are {near[0]} and {near[1]}" if len(near) > 1 else f"the nearest is {near[0]}"
        raise UserError(f"{key}: must be divisible by the {num_classes} classes of {data.name}, got {count}; {nearest}")
    return np.full(num_classes, count // num_classes)


def _choose_num_validation(
    data: ImageData, class_sizes: IntArray, num_labeled: IntArray, use_all_labels: bool, seed: int
) -> IntArray:
    """Return the validation images of each class for ``num_validation=auto``, (C,): one for every four labeled images.

    Zeros if fewer than ``MIN_LABELS_WITH_AUTO`` labels of a class would remain, also after groups are held out.
    """
    smallest, none = int(class_sizes.min()), np.zeros(len(class_sizes), dtype=np.int64)
    if use_all_labels:
        per_class = smallest // 5
        remaining = smallest - per_class
    else:
        per_class = max(0, min(int(num_labeled.min()) // 4, int((class_sizes - num_labeled).min())))
        remaining = int(num_labeled.min())
    if remaining < MIN_LABELS_WITH_AUTO:
        return none
    num_validation = _count_per_class("data.num_validation", len(class_sizes) * per_class, data, class_sizes)
    held_out = _hold_out_groups(data.groups, data.labels.numpy(), num_validation, seed)
    kept = class_sizes - np.bincount(data.labels.numpy()[held_out & (data.labels.numpy() >= 0)], minlength=len(none))
    needed = MIN_LABELS_WITH_AUTO if use_all_labels else num_labeled
    return none if (kept < needed).any() else num_validation


def _hold_out_groups(groups: Sequence[str] | None, labels: IntArray, num_validation: IntArray, seed: int) -> Mask:
    """Choose groups for validation, at least ``num_validation`` images of each class, and return their images, (n,).

    Groups with more images of a class than are missing are chosen only if the others do not suffice, smallest first.
    An image without a group is a group of one.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    if groups is None or not num_validation.any():
        return chosen
    names = [group or f"\0{index}" for index, group in enumerate(groups)]
    _, numbers = np.unique(names, return_inverse=True)
    by_group = np.argsort(numbers, kind="stable")
    members = np.split(by_group, np.flatnonzero(np.diff(numbers[by_group])) + 1)
    missing, num_classes = num_validation.copy(), len(num_validation)
    order = np.random.RandomState([seed, num_classes]).permutation(len(members))
    by_size = sorted(order, key=lambda i: len(members[i]))
    for exact, candidates in ((True, order), (False, by_size)):
        for i in candidates:
            counts = np.bincount(labels[members[i]][labels[members[i]] >= 0], minlength=num_classes)
            wanted = (counts[missing > 0] > 0).any() and not chosen[members[i][0]]
            if wanted and not (exact and (counts > missing).any()):
                chosen[members[i]] = True
                missing -= counts
    return chosen


def load_split(path: Path) -> Split:
    """Read a split file of any images.

    Raises:
        UserError: if the file cannot be read or is not a split.
    """
    try:
        return TypeAdapter(Split).validate_python(json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a split.json") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a split file ({describe_error(error)}); restore it, or use another") from None


def read_split(path: Path, data: ImageData) -> Split:
    """Read a split file of the training images ``data``.

    Raises:
        UserError: if the file cannot be read, is not a split, or is of other images.
    """
    split = load_split(path)
    if split.classes not in (None, data.classes):
        changes = _compare(split.classes, data.classes, "their order changed")
        raise UserError(f"{path}: is of other classes than the present ones ({changes}); {RESTORE_ADVICE}")
    if split.fingerprint != data.fingerprint():
        changes = _compare(split.files, data.files, "pixels or classes changed, perhaps by data.image_size or data.fit")
        raise UserError(f"{path}: is of other images than the present ones ({changes}); {RESTORE_ADVICE}")
    labels = data.labels.numpy()
    for indices in (split.labeled, split.unlabeled, split.validation):
        if len(set(indices)) < len(indices) or not set(indices) <= set(range(len(labels))):
            raise UserError(f"{path}: indices must be unique and from 0 to {len(labels) - 1}")
    if not split.labeled or (labels[split.labeled + split.validation] < 0).any():
        raise UserError(
            f"{path}: labeled and validation images must have a known class, and there must be labeled ones"
        )
    if data.validation is not None and sorted(data.validation) != split.validation:
        raise UserError(f"{path}: its validation images are not those of the data set; use another split or run")
    trained_on = {*split.labeled, *split.unlabeled}
    if trained_on & set(split.validation):
        raise UserError(f"{path}: some validation images are labeled or unlabeled too")
    if data.groups is not None:
        validation_groups = {data.groups[i] for i in split.validation} - {""}
        both = sorted(validation_groups & {data.groups[i] for i in trained_on})
        if both:
            raise UserError(
                f"{path}: {len(both)} groups, such as {both[0]!r}, are in validation and in training; start a new run "
                "without data.split_file"
            )
    return split


def _compare(old: list[str] | None, new: list[str] | None, otherwise: str) -> str:
    """Return how the names in a split differ from the present ones, ``otherwise`` if they do not or are not known."""
    added, missing = sorted({*(new or ())} - {*(old or ())}), sorted({*(old or ())} - {*(new or ())})
    if old is None or new is None or not (added or missing):
        return otherwise
    if len(added) == len(missing) == 1:
        return f"{missing[0]!r} is now {added[0]!r}"
    named = (("new", added), ("missing", missing))
    return ", ".join(f"{len(names)} {text}, such as {names[0]!r}" for text, names in named if names)
