"""Index of a folder of photographs: its files, their classes (from folder names or a CSV file) and groups."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mixmatch.data.dataset import is_folder_name
from mixmatch.errors import UserError
from mixmatch.files import check_regular

UNLABELED_FOLDERS = ("unlabeled", "unlabelled")  # both spellings
UNKNOWN_CLASS = -1
# Files of operating systems; hidden files are ignored as well.
JUNK_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}

NamedFiles = list[tuple[Path, str]]  # files with the names of their classes, empty if unknown


@dataclass
class FolderIndex:
    """The files of a folder of photographs.

    Attributes:
        root: the folder.
        classes: names, sorted.
        files: below ``root``, training files first.
        labels: of each file, a class index or ``UNKNOWN_CLASS``.
        groups: of each file; empty string: none.
        num_train: number of training files.
        problems: reasons why training would fail.
        unused_files: files and folders that are neither training nor test files.
    """

    root: Path
    classes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    num_train: int = 0
    problems: list[str] = field(default_factory=list)
    unused_files: list[Path] = field(default_factory=list)

    def relative_path(self, file: Path) -> str:
        """Return the path of a file below the root, with forward slashes."""
        return file.relative_to(self.root).as_posix()


class LabelRow(NamedTuple):
    """A row of a labels file: its line number, class (None without such a column, empty if unknown) and group."""

    line: int
    class_name: str | None
    group: str


def find_images(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` in an order that all machines share, without hidden and junk files.

    Links to folders are followed, each folder once.

    Raises:
        UserError: if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions or remove it")

    visited = set()
    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in visited:
            folders[:] = []
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in sorted(names) if not is_junk(name))


def check_paths_exist(paths: Sequence[Path]) -> None:
    """Raise UserError if a path does not exist. A dangling link does."""
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{path}: does not exist; give files or folders of pictures")


def is_junk(name: str) -> bool:
    """Return whether a file is hidden or made by an operating system."""
    return name.startswith(".") or name.lower() in JUNK_FILES


def index_folder(root: Path, labels: str | None) -> FolderIndex:
    """Index a folder of photographs.

    Args:
        root: holds train/<class>/, test/<class>/ and unlabeled/. If a labels file has classes, any folders; files in
            test/ are then test files.
        labels: CSV file, relative to ``root``, with a column ``file`` (relative to ``root``), and ``class`` or
            ``group`` or both. Without ``class``, folder names are the classes.

    Raises:
        UserError: if a folder or the labels file cannot be read. Other faults are in ``problems``.
    """
    index, labels_file = FolderIndex(root), root / (labels or "")
    rows = read_labels(labels_file, root) if labels else {}
    if any(row.class_name is not None for row in rows.values()):
        source, (train, test) = labels_file, _find_by_labels(index, rows, labels_file)
    else:
        source, (train, test) = root / "train", _find_by_folders(index, labels_file)
    index.classes = sorted({name for _, name in train if name})
    if len(index.classes) < 2:
        index.problems.append(f"{source}: needs at least two classes, has {len(index.classes)}")
    for name in sorted({name for _, name in test} - {*index.classes}):
        index.problems.append(f"{source}: class {name!r} appears only in test/")
    numbers = {name: number for number, name in enumerate(index.classes)}
    for file, name in (*train, *test):
        path = index.relative_path(file)
        index.files.append(file)
        index.labels.append(numbers.get(name, UNKNOWN_CLASS))
        index.groups.append(rows[path].group if path in rows else "")
    index.num_train = len(train)
    found = {index.relative_path(file) for file in (*index.files, *index.unused_files)}
    for path, row in rows.items():
        if path not in found:
            index.problems.append(f"{labels_file}: line {row.line}: {path} does not exist in {root}")
    return index


def read_labels(file: Path, root: Path) -> dict[str, LabelRow]:
    """Read a labels file: UTF-8, separated by commas, semicolons or tabs.

    Returns:
        The row of each file, by its path below ``root``.

    Raises:
        UserError: if the file cannot be read, a column is missing, or rows of a file differ.
    """
    rows: dict[str, LabelRow] = {}
    try:
        check_regular(file)
        with open(file, encoding="utf-8-sig", newline="") as opened:
            header = opened.readline()
            opened.seek(0)
            lines = csv.reader(opened, delimiter=max(",;\t", key=header.count), strict=True)
            columns = [name.strip().lower() for name in next(lines, [])]
            known = [name for name in columns if name in ("file", "class", "group")]
            if "file" not in known or len(known) < 2 or len(set(known)) < len(known):
                raise UserError(
                    f"{file}: the first line must name the columns: file,class or file,group or file,class,group; it "
                    f"is {header.strip()[:60]!r}"
                )
            for cells in lines:
                if not any(cells):
                    continue
                where = f"{file}: line {lines.line_num}"
                if len(cells) != len(columns):
                    raise UserError(f"{where}: {len(cells)} cells, but {len(columns)} columns; quote cells with commas")
                values = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
                row = LabelRow(lines.line_num, values.get("class"), values.get("group", ""))
                if row.class_name and not is_folder_name(row.class_name):
                    raise UserError(f"{where}: class {row.class_name!r} is not a valid folder name; rename it")
                path = _path_below(root, values["file"])
                earlier = rows.setdefault(path, row)
                if earlier[1:] != row[1:]:
                    raise UserError(f"{file}: {path} has different values in lines {earlier.line} and {row.line}")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); set data.labels to a CSV file") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{file}: not a CSV file ({error})") from None
    if not rows:
        raise UserError(f"{file}: lists no files")
    return rows


def _path_below(root: Path, name: str) -> str:
    """Return the path below ``root`` that a labels file means; it may be absolute or have backslashes."""
    path = os.path.normpath(name)
    if "\\" in path and not os.path.lexists(root / path):
        path = os.path.normpath(path.replace("\\", "/"))
    return os.path.relpath(path, os.path.abspath(root)) if os.path.isabs(path) else path


def _find_by_labels(index: FolderIndex, rows: dict[str, LabelRow], labels_file: Path) -> tuple[NamedFiles, NamedFiles]:
    """Return training and test files with classes from a labels file: test files are those in test/ with a class."""
    train: NamedFiles = []
    test: NamedFiles = []
    suffixes = Image.registered_extensions()
    for file in find_images(index.root):
        path = index.relative_path(file)
        is_test = path.split("/")[0].lower() == "test"
        name = (rows[path].class_name or "") if path in rows else ""
        if is_test and name:
            test.append((file, name))
        elif not is_test and (path in rows or file.suffix.lower() in suffixes):
            train.append((file, name))
        elif os.path.realpath(file) != os.path.realpath(labels_file):
            index.unused_files.append(file)
    return train, test


def _find_by_folders(index: FolderIndex, labels_file: Path) -> tuple[NamedFiles, NamedFiles]:
    """Return training and test files with classes from the names of folders."""
    root = index.root
    unlabeled = [root / name for name in UNLABELED_FOLDERS if os.path.lexists(root / name)]
    if len(unlabeled) > 1:
        index.problems.append(f"{root}: both unlabeled/ and unlabelled/ exist; put all unlabeled images into one")
    train = _find_in_class_folders(index, root / "train")
    train += [(file, "") for folder in unlabeled for file in find_images(folder)]
    test = _find_in_class_folders(index, root / "test") if os.path.lexists(root / "test") else []
    used = {root / "train", root / "test", *unlabeled, labels_file}
    index.unused_files += [path for path in _list_folder(root) if path not in used]
    return train, test


def _find_in_class_folders(index: FolderIndex, folder: Path) -> NamedFiles:
    files: NamedFiles = []
    for path in _list_folder(folder):
        if not path.is_dir():
            index.unused_files.append(path)
            continue
        images = [(file, path.name) for file in find_images(path)]
        if not images and folder == index.root / "train":
            index.problems.append(f"{path}: has no images; add some or remove the folder")
        files += images
    return files


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_junk(path.name))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: does not exist; data.root needs train/<class>/ with images, or set data.labels to a CSV file"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions or remove it") from None
