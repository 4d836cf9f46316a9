"""Which files a folder of photographs is made of, and what is known of each: from folders' names, or from a table."""

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mixmatch.data.folder.decode import find_images, is_folder_name, is_litter
from mixmatch.errors import UserError
from mixmatch.files import check_regular
from mixmatch.settings import brief

UNLABELED = ("unlabeled", "unlabelled")  # both spellings
NOT_KNOWN = -1


@dataclass
class FolderIndex:
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


def list_photographs(root: Path, table: str | None) -> FolderIndex:
    """List a folder of photographs.

    Args:
        root: holds train/<class>/, test/<class>/ and unlabeled/; if a table says classes, files in any folders, of
            which those in test/ are for testing alone.
        table: a CSV file, below ``root`` if its path is relative, with columns ``file`` (below ``root``), ``class``,
            ``group``. The last two may be absent: without ``class``, folders say it.

    Raises:
        UserError: if a folder or the table cannot be read at all. All else is in ``problems``.
    """
    listing = FolderIndex(root)
    if table is None:
        _by_folders(listing)
        listing.groups = [""] * len(listing.files)
        return listing
    file = root / table
    rows = read_labels(file, root)
    if any("class" in row for row in rows.values()):
        _by_table(listing, rows, file)
    else:
        _by_folders(listing, ignored=table)
    places = [listing.place(photograph) for photograph in listing.files]
    listing.groups = [rows.get(place, {}).get("group", "") for place in places]
    listed = {*places, *(listing.place(stray) for stray in listing.strays)}
    for place, row in rows.items():
        if place not in listed:
            listing.problems.append(f"{file}: line {row['line']}: {place} is no file below {root}")
    return listing


def read_labels(file: Path, root: Path) -> dict[str, dict[str, str]]:
    """Read a table of labels of files below ``root``, UTF-8, separated by commas, semicolons or tabs.

    Returns:
        For each file, by its path below the root, ``line`` and what the table says of ``class`` and ``group``.

    Raises:
        UserError: if it cannot be read, lacks the column ``file``, or says two things of one file.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        check_regular(file)
        with open(file, encoding="utf-8-sig", newline="") as opened:
            head = opened.readline()
            opened.seek(0)
            lines = csv.reader(opened, delimiter=max(",;\t", key=head.count), strict=True)
            columns = [name.strip().lower() for name in next(lines, [])]
            known = [name for name in columns if name in ("file", "class", "group")]
            if "file" not in known or len(known) < 2 or len(set(known)) < len(known):
                raise UserError(
                    f"{file}: needs a first line that names its columns, file,class or file,class,group, each once; "
                    f"it names {brief(columns)}"
                )
            for cells in lines:
                if not any(cells):
                    continue
                if len(cells) != len(columns):
                    raise UserError(f"{file}: line {lines.line_num}: {len(cells)} cells, but {len(columns)} columns")
                row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
                said = {name: row[name] for name in ("class", "group") if name in row}
                place = find_place(row["file"], root)
                name = said.get("class", "")
                if name and not is_folder_name(name):
                    raise UserError(f"{file}: line {lines.line_num}: {name!r} is no name for a class")
                former = rows.get(place, said)
                if any(former[name] != said[name] for name in said):
                    raise UserError(f"{file}: line {lines.line_num}: {place} was another in line {former['line']}")
                rows[place] = said | {"line": str(lines.line_num)}
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror or error}); data.labels must name a CSV file"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{file}: is no CSV that can be read ({error})") from None
    if not rows:
        raise UserError(f"{file}: names no files")
    return rows


def find_place(name: str, root: Path) -> str:
    """Return the path below ``root`` that a table means, which may be of Windows, or absolute."""
    place = os.path.normpath(name)
    if "\\" in place and not os.path.lexists(root / place):
        place = os.path.normpath(place.replace("\\", "/"))
    if os.path.isabs(place):
        place = os.path.relpath(place, os.path.abspath(root))
    return place


def _by_table(listing: FolderIndex, rows: dict[str, dict[str, str]], table: Path) -> None:
    """Take classes from a table: pictures that it does not name are unlabeled, but in test/ they are left out."""
    root = listing.root
    in_test = {place for place in rows if is_test(place)}
    names = {place: row["class"] for place, row in rows.items() if row.get("class")}
    listing.classes = sorted({name for place, name in names.items() if place not in in_test})
    numbers = {name: number for number, name in enumerate(listing.classes)}
    if len(numbers) < 2:
        listing.problems.append(f"{table}: needs at least two classes, has {len(numbers)}")
    unknown = sorted({names[place] for place in in_test if place in names} - numbers.keys())
    if unknown:
        listing.problems.append(f"{table}: class {unknown[0]!r} is there in test/ alone")
    parts: dict[str, list[Path]] = {"train": [], "test": []}
    suffixes = Image.registered_extensions()
    for file in find_images(root):
        place = listing.place(file)
        if place in rows or file.suffix.lower() in suffixes:
            parts["test" if is_test(place) else "train"].append(file)
        elif os.path.realpath(file) != os.path.realpath(table):
            listing.strays.append(file)
    for file in parts["train"]:
        listing.add([file], numbers.get(names.get(listing.place(file), ""), NOT_KNOWN))
    listing.num_train = len(listing.files)
    for file in parts["test"]:
        number = numbers.get(names.get(listing.place(file), ""), NOT_KNOWN)
        if number == NOT_KNOWN:
            listing.strays.append(file)
        else:
            listing.add([file], number)


def is_test(place: str) -> bool:
    """Tell whether a path below the root lies in test/, however that is written."""
    return place.split("/")[0].lower() == "test"


def _by_folders(listing: FolderIndex, ignored: str = "") -> None:
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
    unlabeled = [root / name for name in UNLABELED if os.path.lexists(root / name)]
    if len(unlabeled) > 1:
        problems.append(f"{unlabeled[1]}: is there beside {unlabeled[0].name}/; put all unlabeled images into one")
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
    known = {"train", "test", *UNLABELED, ignored}
    listing.strays += [path for path in _list(root) if path.name not in known]


def _look_into(folder: Path, missing_is_fine: bool = False) -> tuple[list[str], list[Path]]:
    """Return the names of the folders in a folder, and what else lies there."""
    if missing_is_fine and not os.path.lexists(folder):
        return [], []
    inside = _list(folder)
    return [path.name for path in inside if path.is_dir()], [path for path in inside if not path.is_dir()]


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_litter(path.name))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: is not there; data.root must hold train/<class>/ with images, or data.labels name a table"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); mend its permissions or remove it") from None
