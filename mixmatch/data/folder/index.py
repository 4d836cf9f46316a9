"""Index of a folder of photographs: its files, their classes (from folder names or a CSV file) and groups."""

import csv
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mixmatch.data.dataset import is_folder_name
from mixmatch.errors import UserError
from mixmatch.files import from_csv_text

UNLABELED_FOLDERS = ("unlabeled", "unlabelled")  # both spellings
VALIDATION_FOLDERS = ("val", "valid", "validation")
# The first columns of predict's table. Those of the probabilities follow, named like the classes.
PREDICTION_COLUMNS = ("file", "class", "confidence", "true_class", "problem")
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
        files: below ``root``: training files, of which those for validation are the last, then test files.
        paths: of each file, below the root, with forward slashes.
        labels: of each file, a class index or ``UNKNOWN_CLASS``.
        groups: of each file; empty string: none.
        num_train: number of training files, those for validation included.
        num_validation: number of files in val/.
        problems: reasons why training would fail.
        notes: lines to print.
        unused_files: files and folders that are neither training nor test files.
    """

    root: Path
    classes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    num_train: int = 0
    num_validation: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused_files: list[Path] = field(default_factory=list)

    def relative_path(self, file: Path) -> str:
        """Return the path of a file below the root, with forward slashes."""
        root = self.root.as_posix()
        return file.as_posix().removeprefix("" if root == "." else f"{root}/")  # relative_to takes seconds for 100,000


class FoundFiles(NamedTuple):
    """The files of a folder, by what they are for; those for training include the unlabeled ones."""

    train: NamedFiles
    validation: NamedFiles
    test: NamedFiles


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


def index_folder(root: Path, labels: str | None, min_classes: int = 2) -> FolderIndex:
    """Index a folder of photographs.

    Args:
        root: holds train/<class>/, val/<class>/, test/<class>/ and unlabeled/, in any case. If a labels file has
            classes, any folders; files in val/ and test/ are then for validation and testing.
        labels: CSV file, relative to ``root``, with a column ``file`` (relative to ``root``), and ``class`` or
            ``group`` or both. Without ``class``, folder names are the classes.
        min_classes: fewer are a problem; training needs two.

    Raises:
        UserError: if a folder or the labels file cannot be read. Other faults are in ``problems``.
    """
    index, labels_file = FolderIndex(root), root / (labels or "")
    rows = _locate(index, read_labels(labels_file, root, index.notes), labels_file) if labels else {}
    if any(row.class_name is not None for row in rows.values()):
        source, files = labels_file, _find_by_labels(index, rows, labels_file)
    else:
        source, files = root / "train", _find_by_folders(index, labels_file)
    index.classes = sorted({name for _, name in files.train if name})
    if len(index.classes) < min_classes:
        action = "name more in the file" if source == labels_file else "sort a few pictures of each into folders"
        index.problems.append(f"{source}: needs at least two classes, has {len(index.classes)}; {action}")
    for part, named in (("val/", files.validation), ("test/", files.test)):
        for name in sorted({name for _, name in named} - {*index.classes}):
            index.problems.append(
                f"{source}: class {name!r} appears only in {part}; add pictures to train on, or remove it"
            )
    _check_class_names(index, source)
    numbers = {name: number for number, name in enumerate(index.classes)}
    for file, name in (*files.train, *files.validation, *files.test):
        path = index.relative_path(file)
        index.files.append(file)
        index.paths.append(path)
        index.labels.append(numbers.get(name, UNKNOWN_CLASS))
        index.groups.append(rows[path].group if path in rows else "")
    index.num_train, index.num_validation = len(files.train) + len(files.validation), len(files.validation)
    known = {*index.paths, *map(index.relative_path, index.unused_files)}
    if unknown := [path for path in rows if path not in known]:
        path, more = unknown[0], f" (and {len(unknown) - 1:,} more rows)" * (len(unknown) > 1)
        index.problems.append(
            f"{labels_file}: line {rows[path].line}: {path} is a folder, hidden, in a folder that is not used, or "
            f"found by another path{more}; correct or remove such rows"
        )
    return index


def to_nfc(name: str) -> str:
    """Return the composed form of a class name: macOS writes "\u00e4" as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def has_train_folder(root: Path) -> bool:
    """Return whether a folder has a folder ``train``, in any case."""
    return _find_folder(FolderIndex(root), "train") is not None


def _check_class_names(index: FolderIndex, source: Path) -> None:
    """Report classes that are none, and names that look like several classes."""
    for name in index.classes:
        if re.sub(r"[\W_]", "", name).lower() in UNLABELED_FOLDERS:
            index.problems.append(
                f"{source}: {name!r} would be a class; move its images to {index.root / 'unlabeled'}/ (in a labels "
                "file, leave the class empty), or rename it if it is a class"
            )
    alike: dict[str, list[str]] = {}
    for name in index.classes:
        alike.setdefault(name.strip().casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            index.notes.append(f"classes {' and '.join(map(repr, names))} differ only in case or spaces; rename one")
    several = [repr(name) for name in index.classes if re.search(r"\S\s*[|;,]\s*\S", name)]
    if several:
        more = f" and {len(several) - 3} more" * (len(several) > 3)
        index.notes.append(f"a picture has one class: {', '.join(several[:3])}{more} are classes of their own")


def read_labels(file: Path, root: Path, notes: list[str]) -> dict[str, LabelRow]:
    """Read a labels file: UTF-8, separated by commas, semicolons or tabs. The table of ``predict`` is one.

    Args:
        file: CSV file.
        root: the folder that its paths are relative to.
        notes: gets a line if something was assumed.

    Returns:
        The row of each file, by its path below ``root``.

    Raises:
        UserError: if the file cannot be read, a column is missing, or rows of a file differ.
    """
    rows: dict[str, LabelRow] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            start, header = 0, opened.readline()
            if re.match(r"sep=.\s*$", header):  # Excel's
                start, header = opened.tell(), opened.readline()
            if "\0" in header:
                raise UserError(f"{file}: not UTF-8; save it as CSV UTF-8")
            opened.seek(start)
            lines = csv.reader(opened, delimiter=max(",;\t", key=header.count), strict=True)
            columns = [name.strip().lower() for name in next(lines, [])]
            if columns[: len(PREDICTION_COLUMNS)] == [*PREDICTION_COLUMNS]:  # a class may be called group
                columns[len(PREDICTION_COLUMNS) :] = [""] * (len(columns) - len(PREDICTION_COLUMNS))
            elif "path" in columns and "file" not in columns:
                columns[columns.index("path")] = "file"
                notes.append(f"{file}: the column path is taken for the column file")
            known = [name for name in columns if name in ("file", "class", "group")]
            if "file" not in known or len(known) < 2 or len(set(known)) < len(known):
                raise UserError(
                    f"{file}: the first line must name the columns: file,class or file,group or file,class,group; it "
                    f"is {header.strip()[:60]!r}"
                )
            for cells in lines:
                if not any(cells):
                    continue
                number = lines.line_num + (start > 0)
                where = f"{file}: line {number}"
                if len(cells) != len(columns):
                    raise UserError(f"{where}: {len(cells)} cells, but {len(columns)} columns; quote cells with commas")
                values = {name: from_csv_text(cell.strip()) for name, cell in zip(columns, cells, strict=True)}
                class_name = values.get("class")
                row = LabelRow(number, class_name and to_nfc(class_name), values.get("group", ""))
                if row.class_name and not is_folder_name(row.class_name):
                    raise UserError(f"{where}: class {row.class_name!r} is not a valid folder name; rename it")
                name = from_csv_text(cells[columns.index("file")])
                path = _path_below(root, values["file"])
                if name != values["file"] and os.path.lexists(root / name):  # spaces belong to it
                    path = _path_below(root, name)
                earlier = rows.setdefault(path, row)
                if earlier[1:] != row[1:]:
                    raise UserError(f"{file}: {path} has different values in lines {earlier.line} and {row.line}")
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror or error}); set data.labels to a CSV file, relative to data.root"
        ) from None
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
    if not os.path.isabs(path):
        return path
    below = os.path.relpath(path, os.path.abspath(root))
    if below.startswith(".."):  # the root may be a link
        folder, name = os.path.split(path)
        below = os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(root))
    return below


def _locate(index: FolderIndex, rows: dict[str, LabelRow], labels_file: Path) -> dict[str, LabelRow]:
    """Return the rows by paths below the root. Report those that do not exist.

    Paths that are relative to the working directory, or to one folder below the root, are taken with a note.
    """
    root, located, missing = index.root, dict[str, LabelRow](), list[str]()
    assumed = {"the working directory": 0, f"folders below {root}": 0}
    by_name: dict[str, list[str]] = {}
    if not all((root / path).exists() for path in rows):
        for file in find_images(root):
            by_name.setdefault(file.name, []).append(index.relative_path(file))
    for path, row in rows.items():
        from_here = os.path.relpath(path, root)
        matches = [other for other in by_name.get(os.path.basename(path), []) if f"/{other}".endswith(f"/{path}")]
        if os.path.lexists(root / path) and not path.startswith(".."):
            found = path
        elif os.path.lexists(path) and not from_here.startswith(".."):
            found = Path(from_here).as_posix()
            assumed["the working directory"] += 1
        elif len(matches) == 1:
            found = matches[0]
            assumed[f"folders below {root}"] += 1
        else:
            missing.append(
                f"line {row.line}: {path} " + (f"exists {len(matches)} times" if matches else "does not exist")
            )
            continue
        if located.setdefault(found, row)[1:] != row[1:]:
            earlier = located[found].line
            raise UserError(f"{labels_file}: {found} has different values in lines {earlier} and {row.line}")
    for where, count in assumed.items():
        if count:
            paths = f"{count:,} path{'s are' if count > 1 else ' is'}"
            index.notes.append(f"{labels_file}: {paths} taken as relative to {where}, not to {root}")
    if missing:
        more = f" (and {len(missing) - 1:,} more rows, such as {missing[1]})" if len(missing) > 1 else ""
        index.problems.append(
            f"{labels_file}: {missing[0]} in {root}{more}; write paths relative "
            "to data.root, and remove the rows of files that are gone"
        )
    return located


def picture_suffixes() -> set[str]:
    """Return the endings of the names of files that Pillow can read, ``.png`` and the like."""
    suffixes = Image.registered_extensions()  # before Image.OPEN is read: it loads Pillow's plug-ins
    return {suffix for suffix, kind in suffixes.items() if kind in Image.OPEN or kind == "MPO"}  # opened as JPEG


def _find_by_labels(index: FolderIndex, rows: dict[str, LabelRow], labels_file: Path) -> FoundFiles:
    """Return the files with classes from a labels file. In val/ and test/, those without a class are not used."""
    found = FoundFiles([], [], [])
    suffixes = picture_suffixes()
    classes = {row.class_name for row in rows.values()} - {""}
    unlisted: list[str] = []
    for file in find_images(index.root):
        path = index.relative_path(file)
        top = path.split("/")[0].lower() if "/" in path else ""
        name = (rows[path].class_name or "") if path in rows else ""
        held_out = found.test if top == "test" else found.validation if top in VALIDATION_FOLDERS else None
        if held_out is not None and name:
            held_out.append((file, name))
        elif held_out is None and (name or file.suffix.lower() in suffixes):
            found.train.append((file, name))
            if path not in rows and file.parent.name in classes:
                unlisted.append(path)
        elif os.path.realpath(file) != os.path.realpath(labels_file):
            index.unused_files.append(file)
    if unlisted:
        index.notes.append(
            f"{labels_file}: {len(unlisted):,} pictures in folders named like a class have no row and are unlabeled, "
            f"such as {unlisted[0]}; add rows for them, since the file replaces folder names"
        )
    return found


def _find_by_folders(index: FolderIndex, labels_file: Path) -> FoundFiles:
    """Return the files with classes from the names of folders."""
    root = index.root
    train = _find_folder(index, "train") or root / "train"
    unlabeled, validation, test = (
        _find_folder(index, *names) for names in (UNLABELED_FOLDERS, VALIDATION_FOLDERS, ["test"])
    )
    found = FoundFiles(*(_find_in_class_folders(index, part) if part else [] for part in (train, validation, test)))
    found.train.extend((file, "") for file in (find_images(unlabeled) if unlabeled else ()))
    used = {train, unlabeled, validation, test, labels_file}
    index.unused_files += [path for path in _list_folder(root) if path not in used]
    return found


def _find_folder(index: FolderIndex, *names: str) -> Path | None:
    """Return the folder below the root with one of these names, in any case; report it if there are several."""
    found = [path for path in _list_folder(index.root) if path.name.lower() in names]
    if len(found) > 1:
        names_found = " and ".join(f"{path.name}/" for path in found)
        index.problems.append(f"{index.root}: both {names_found} exist; put all of their images into one")
    return found[0] if found else None


def _find_in_class_folders(index: FolderIndex, folder: Path) -> NamedFiles:
    files: NamedFiles = []
    for path in _list_folder(folder):
        if not path.is_dir():
            index.unused_files.append(path)
            continue
        images = [(file, to_nfc(path.name)) for file in find_images(path)]
        if not images:
            index.notes.append(f"{path}: has no images and is ignored")
        files += images
    return files


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_junk(path.name))
    except NotADirectoryError:
        raise UserError(f"{folder}: is a file; give a folder") from None
    except FileNotFoundError:
        raise UserError(
            f"{folder}: does not exist; data.root needs train/<class>/ with images, or set data.labels to a CSV file"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions or remove it") from None
