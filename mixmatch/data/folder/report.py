"""Report about a folder of photographs for ``--check``: contents, oddities, and what training would fail with."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from mixmatch.data.dataset import Report
from mixmatch.data.folder.dataset import DecodedPictures, count_files, list_examples, read_pictures
from mixmatch.data.folder.index import UNKNOWN_CLASS, FolderIndex, find_images, index_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.errors import single_line

MAX_LISTED = 20  # duplicates or groups
MAX_NAME_LENGTH = 40


def describe_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> Report:
    """Read every file below ``settings.root`` and describe what is there; arguments as for ``read_folder``.

    Raises:
        UserError: if a folder or the labels file cannot be read, or the images do not fit into memory.
    """
    index = index_folder(Path(settings.root), settings.labels)
    decoded, notes = read_pictures(index, settings, device, quiet)
    unreadable = [f"{index.files[i]}: {reason}" for i, reason in decoded.unreadable.items()]
    lines = [
        *_describe_classes(index, decoded),
        *_describe_pictures(index, decoded),
        *_describe_duplicates(index, decoded),
        *_describe_groups(index),
        *(f"ignored: {_describe_unused(path)}" for path in index.unused_files),
    ]
    problems = list(index.problems)
    if settings.skip_unreadable:
        lines += [f"skipped: {line}" for line in unreadable]
    elif unreadable:
        problems += [f"cannot be read: {line}" for line in unreadable]
        lines.append(f"{count_files(len(unreadable))} cannot be read; data.skip_unreadable=true skips such files")
    return Report([*lines, *notes], problems)


def _describe_classes(index: FolderIndex, decoded: DecodedPictures) -> Iterator[str]:
    readable = [(n, label) for n, label in enumerate(index.labels) if n not in decoded.unreadable]
    train = Counter(label for n, label in readable if n < index.num_train)
    test = Counter(label for n, label in readable if n >= index.num_train)
    names = [single_line(name)[:MAX_NAME_LENGTH] for name in index.classes]
    width = max(len(name) for name in ("unlabeled", *names))
    yield f"{index.root}: {count_files(len(index.files))}"
    yield f"  {'class':<{width}}   train    test"
    for number, name in enumerate(names):
        yield f"  {name:<{width}}{train[number]:>8,}{test[number]:>8,}"
    yield f"  {'unlabeled':<{width}}{train[UNKNOWN_CLASS]:>8,}"


def _describe_pictures(index: FolderIndex, decoded: DecodedPictures) -> Iterator[str]:
    kinds: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    for n, file in enumerate(index.files):
        if n not in decoded.unreadable:
            with Image.open(file) as image:  # reads the header only
                kinds[f"{image.format}, {image.mode}"] += 1
                sizes.append(image.size)
    if not sizes:
        return
    yield "formats: " + "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    smallest, median, largest = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    yield f"sizes: {smallest} to {largest} pixels, median {median}"
    side = decoded.images.shape[1]
    num_small = sum(min(size) < side for size in sizes)
    if num_small:
        yield f"{count_files(num_small)} with a side below {side} pixels (data.image_size) will be enlarged"
    for n in decoded.several_pages:
        yield f"only the first page is used of {index.files[n]}"


def _describe_duplicates(index: FolderIndex, decoded: DecodedPictures) -> Iterator[str]:
    """List pictures that exist more than once, those that affect accuracy or labels first."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for n, image in enumerate(decoded.images):
        if n not in decoded.unreadable:
            same[hashlib.blake2b(image.numpy().tobytes()).digest()].append(n)
    duplicates: dict[str, list[list[int]]] = {" in train and test": [], " with different classes": [], "": []}
    for group in same.values():
        if len(group) > 1:
            labels = {index.labels[n] for n in group} - {UNKNOWN_CLASS}
            if group[0] < index.num_train <= group[-1]:
                duplicates[" in train and test"].append(group)
            else:
                duplicates[" with different classes" if len(labels) > 1 else ""].append(group)
    for where, groups in duplicates.items():
        if groups:
            pictures = "1 picture exists" if len(groups) == 1 else f"{len(groups):,} pictures exist"
            paths = [" = ".join(index.relative_path(index.files[n]) for n in group) for group in groups]
            yield f"{pictures} more than once{where}: {list_examples(paths, MAX_LISTED)}"


def _describe_groups(index: FolderIndex) -> Iterator[str]:
    both = {*index.groups[: index.num_train]} & {*index.groups[index.num_train :]} - {""}
    if both:
        yield f"groups in train and test: {list_examples(sorted(both), MAX_LISTED)}"


def _describe_unused(path: Path) -> str:
    return f"{path}/ ({count_files(sum(1 for _ in find_images(path)))})" if path.is_dir() else str(path)
