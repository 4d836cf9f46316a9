"""Which files a folder of photographs is made of, and what is known of each: from folders' names, or from a table."""

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

from mixmatch.data.decode import find_images, is_litter
from mixmatch.errors import UserError

UNLABELED = ("unlabeled", "unlabelled")
NOT_KNOWN = -1


@dataclass
class Listing:
    """The files of a folder of photographs.

    Attributes:
        root: the folder.
        classes: names, sorted.
        files: below ``root``, training files first.
        labels: of each file, a number of a class or -1.
        groups: of each file, what must not be split over training and validation; empty if that is nothing.
        num_train: how many of the files are training files.
        problems: what training would fail with, a line each.
        strays: what nothing looks at.
    """

    root: Path
    classes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    num_train: int = 0
    problems: list[str] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)

    def add(self, files: list[Path], label: int) -> None:
        """Add files of a class, or of none that is known."""
        self.files += files
        self.labels += [label] * len(files)

    def place(self, file: Path) -> str:
        """Return the path of a file below the root, as tables have it."""
        return file.relative_to(self.root).as_posix()


def list_photographs(root: Path, table: str | None) -> Listing:
    """List a folder of photographs.

    Args:
        root: holds train/<class>/, test/<class>/ and unlabeled/; if a table says classes, files in any folders, of
            which those in test/ are for testing alone.
        table: a CSV file, below ``root`` if its path is relative, with columns ``file`` (below ``root``), ``class``,
            ``group``. The last two may be absent: without ``class``, folders say it.

    Raises:
        UserError: if a folder or the table cannot be read at all. All else is in ``problems``.
    """
    rows = None if table is None else read_labels(root / table, root)
    by_table = rows is not None and any("class" in row for row in rows.values())
    listing = Listing(root)
    if rows is not None and by_table:
        _by_table(listing, rows, root / str(table))
    else:
        _by_folders(listing, ignored={str(table)})
    if rows is not None:
        groups = {place: row.get("group", "") for place, row in rows.items()}
        listing.groups = [groups.get(listing.place(file), "") for file in listing.files]
        listed = {listing.place(file) for file in listing.files + listing.strays}
        for place, row in rows.items():
            if place not in listed:
                listing.problems.append(f"{root / str(table)}: line {row['line']}: {place} is no file below {root}")
    else:
        listing.groups = [""] * len(listing.files)
    return listing


def read_labels(file: Path, root: Path) -> dict[str, dict[str, str]]:
    """Read a table of labels of files below ``root``, separated by commas, semicolons or tabs.

    Returns:
        For each file, by its path below the root, ``line`` and what the table says of ``class`` and ``group``.

    Raises:
        UserError: if it cannot be read, lacks the column ``file``, or says two things of one file.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            head = opened.readline()
            opened.seek(0)
            reader = csv.DictReader(opened, delimiter=max(",;\t", key=head.count), strict=True)
            if "file" not in (reader.fieldnames or []):
                raise UserError(f"{file}: needs a first line that names its columns: file,class or file,class,group")
            for row in reader:
                said = {name: (row[name] or "").strip() for name in ("class", "group") if name in row}
                place = os.path.normpath((row["file"] or "").strip())
                if os.path.isabs(place):
                    place = os.path.relpath(place, root)
                former = rows.get(place, said)
                if any(former[name] != said[name] for name in said):
                    raise UserError(f"{file}: line {reader.line_num}: {place} was another in line {former['line']}")
                rows[place] = said | {"line": str(reader.line_num)}
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); data.labels must name a CSV file") from None
    except csv.Error as error:
        raise UserError(f"{file}: is no CSV that can be read ({error})") from None
    if not rows:
        raise UserError(f"{file}: names no files")
    return rows


def _by_table(listing: Listing, rows: dict[str, dict[str, str]], table: Path) -> None:
    """Take classes from a table: what it does not name is unlabelled, but in test/ it is left out."""
    root = listing.root
    in_test = {place for place in rows if place.split("/")[0] == "test"}
    names = {place: row["class"] for place, row in rows.items() if row.get("class")}
    listing.classes = sorted({name for place, name in names.items() if place not in in_test})
    numbers = {name: number for number, name in enumerate(listing.classes)}
    if len(numbers) < 2:
        listing.problems.append(f"{table}: needs at least two classes, has {len(numbers)}")
    unknown = sorted({names[place] for place in in_test if place in names} - numbers.keys())
    if unknown:
        listing.problems.append(f"{table}: class {unknown[0]!r} is there in test/ alone")
    parts: dict[str, list[Path]] = {"train": [], "test": []}
    for file in find_images(root):
        if file != table:
            parts["test" if listing.place(file).split("/")[0] == "test" else "train"].append(file)
    for file in parts["train"]:
        listing.add([file], numbers.get(names.get(listing.place(file), ""), NOT_KNOWN))
    listing.num_train = len(listing.files)
    for file in parts["test"]:
        number = numbers.get(names.get(listing.place(file), ""), NOT_KNOWN)
        if number == NOT_KNOWN:
            listing.strays.append(file)
        else:
            listing.add([file], number)


def _by_folders(listing: Listing, ignored: set[str]) -> None:
    """Take classes from the names of folders."""
    root, problems = listing.root, listing.problems
    listing.classes, stray = _look_into(root / "train")
    listing.strays += stray
    tested, stray = _look_into(root / "test", missing_is_fine=True)
    listing.strays += stray
    if len(listing.classes) < 2:
        problems.append(
            f"{root / 'train'}: needs a folder of images for each class, at least two, has {len(listing.classes)}"
        )
    for name in tested:
        if name not in listing.classes:
            problems.append(f"{root / 'test' / name}: class {name!r} is in test/ but not in train/")
    unlabeled = [root / name for name in UNLABELED if (root / name).exists()]
    if len(unlabeled) > 1:
        problems.append(f"{unlabeled[1]}: is there beside {unlabeled[0].name}/; put all unlabelled images into one")
    for part in ("train", "test"):
        for number, name in enumerate(listing.classes):
            folder = root / part / name
            members = list(find_images(folder)) if folder.exists() else []
            if part == "train" and not members:
                problems.append(f"{folder}: holds no images; add some, or remove the folder")
            listing.add(members, number)
        if part == "train":
            listing.add([file for folder in unlabeled for file in find_images(folder)], NOT_KNOWN)
            listing.num_train = len(listing.files)
    known = {"train", "test", *UNLABELED, *ignored}
    listing.strays += sorted(path for path in root.iterdir() if path.name not in known and not is_litter(path.name))


def _look_into(folder: Path, missing_is_fine: bool = False) -> tuple[list[str], list[Path]]:
    """Return the names of the folders in a folder, and what else lies there."""
    try:
        inside = sorted(path for path in folder.iterdir() if not is_litter(path.name))
    except FileNotFoundError:
        if missing_is_fine:
            return [], []
        raise UserError(
            f"{folder}: is not there; data.root must hold train/<class>/ with images, or data.labels name a table"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    return [path.name for path in inside if path.is_dir()], [path for path in inside if not path.is_dir()]
