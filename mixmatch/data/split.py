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
from pydantic import TypeAdapter, ValidationError

from mixmatch.errors import UserError


@dataclass(frozen=True)
class Split:
    """Indices into the training images.

    ``fingerprint`` is the data set's: indices mean something with these images only.
    """

    dataset: str
    fingerprint: str
    labeled: list[int]
    unlabeled: list[int]
    validation: list[int]

    def to_json(self) -> str:
        """Return the text of a split file."""
        return json.dumps(asdict(self)) + "\n"


def make_split(
    dataset: str,
    fingerprint: str,
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int,
    num_labeled: int | Literal["all"],
    num_validation: int,
    labeled_as_unlabeled: bool,
) -> Split:
    """Draw a class-balanced split.

    Of each class's images in random order, the labelled are the first and the validation images the last: with
    the same seed, 250 labels are among the 4000, and the validation set is the same.

    Args:
        dataset, fingerprint: stored in the split.
        labels: (n,) class of every training image, -1 where unknown: these only ever serve as unlabelled.
        classes: names, for messages.
        seed: of the draw.
        num_labeled: in all, or ``all`` that have a known class and are not for validation.
        num_validation: in all.
        labeled_as_unlabeled: whether the labelled images are among the unlabelled too.

    Raises:
        UserError: if a count cannot be had.
    """
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
    for number, name in enumerate(classes):
        members = np.flatnonzero(labels == number)
        available = len(members) - held_out
        if available < (1 if want == "all" else want):
            key, ask = ("data.num_validation", held_out) if available < 1 else ("data.num_labeled", want)
            raise UserError(
                f"{key}: {ask} images of each class are too many: class {name!r} has {len(members)}"
                + (f", {held_out} of them for validation" if held_out and key == "data.num_labeled" else "")
            )
        members = members[np.random.RandomState([seed, number]).permutation(len(members))]
        labeled.append(members[: available if want == "all" else want])
        validation.append(members[available:])
    labeled, validation = np.sort(np.concatenate(labeled)), np.sort(np.concatenate(validation))
    unlabeled = np.ones(len(labels), dtype=bool)
    unlabeled[validation] = False
    if not labeled_as_unlabeled:
        unlabeled[labeled] = False
    return Split(dataset, fingerprint, labeled.tolist(), np.flatnonzero(unlabeled).tolist(), validation.tolist())


def read_split(path: Path, fingerprint: str, labels: np.ndarray) -> Split:
    """Read a split file and check that it fits the training images.

    Raises:
        UserError: if the file cannot be read, is no split, or belongs to other images.
    """
    try:
        split = TypeAdapter(Split).validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a split file is needed there") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: is no split file ({where + ': ' if where else ''}{first['msg']})") from None
    if split.fingerprint != fingerprint:
        raise UserError(f"{path}: belongs to other images than those found now (the fingerprints differ)")
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
