"""Report about a folder of photographs for ``--check``: contents, oddities, and what training would fail with."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from mixmatch.data.dataset import Report
from mixmatch.data.folder.cache import PictureCache, cache_folder, list_caches
from mixmatch.data.folder.dataset import (
    DEFAULT_SIZE,
    DecodedPictures,
    count_files,
    list_examples,
    read_pictures,
)
from mixmatch.data.folder.duplicates import find_near_duplicates
from mixmatch.data.folder.index import UNKNOWN_CLASS, FolderIndex, find_images, index_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.errors import single_line

MAX_LISTED = 20  # duplicates or groups that make accuracy wrong
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
        *_describe_pictures(index, decoded, settings),
        *(f"ignored: {_describe_unused(path)}" for path in index.unused_files),
    ]
    warnings = [*_describe_flat(index, decoded), *_describe_groups(index)]
    for warns, line in _describe_duplicates(index, decoded):
        (warnings if warns else lines).append(line)
    folder = cache_folder(settings)
    if folder is not None:
        caches = list_caches(folder)
        used = PictureCache(folder, settings.image_size or DEFAULT_SIZE, settings.decoding).name
        others = sum(caches.values()) - caches.get(used, 0)
        more = f", and {others / 1e6:,.0f} MB with other settings; --refresh-cache removes all" if others else ""
        lines.append(f"decoded images: {folder}, {caches.get(used, 0) / 1e6:,.0f} MB{more}")
    problems = list(index.problems)
    if settings.skip_unreadable:
        lines += [f"skipped: {line}" for line in unreadable]
    elif unreadable:
        problems += [f"cannot be read: {line}" for line in unreadable]
        lines.append(f"{count_files(len(unreadable))} cannot be read; data.skip_unreadable=true skips such files")
    return Report([*lines, *(index.notes if problems else []), *notes], warnings, problems)


def _describe_classes(index: FolderIndex, decoded: DecodedPictures) -> Iterator[str]:
    readable = [(n, label) for n, label in enumerate(index.labels) if n not in decoded.unreadable]
    first = index.num_train - index.num_validation
    train = Counter(label for n, label in readable if n < first)
    validation = Counter(label for n, label in readable if first <= n < index.num_train)
    test = Counter(label for n, label in readable if n >= index.num_train)
    names = [single_line(name)[:MAX_NAME_LENGTH] for name in index.classes]
    width = max(len(name) for name in ("unlabeled", *names))
    yield f"{index.root}: {count_files(len(index.files))}"
    val = bool(index.num_validation)
    yield f"  {'class':<{width}}   train{'     val' * val}    test"
    for number, name in enumerate(names):
        yield f"  {name:<{width}}{train[number]:>8,}{f'{validation[number]:>8,}' * val}{test[number]:>8,}"
    yield f"  {'unlabeled':<{width}}{train[UNKNOWN_CLASS]:>8,}"


def _describe_pictures(index: FolderIndex, decoded: DecodedPictures, settings: FolderSettings) -> Iterator[str]:
    infos = decoded.infos
    if not infos:
        return
    kinds = Counter(info.kind for info in infos.values())
    yield "formats: " + "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    sizes = sorted((info.size for info in infos.values()), key=lambda size: (size[0] * size[1], size))
    smallest, median, largest = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    yield f"sizes: {smallest} to {largest} pixels, median {median}"
    side = decoded.images.shape[1]
    num_small = sum(min(size) < side for size in sizes)
    if num_small:
        yield f"{count_files(num_small)} with a side below {side} pixels (data.image_size) will be enlarged"
    num_transparent = sum(info.transparent for info in infos.values())
    if num_transparent:
        yield f"{count_files(num_transparent)} with transparency over {settings.background} (data.background)"
    for n, info in infos.items():
        if info.pages > 1:
            yield f"only the first page is used of {index.files[n]}"


def _describe_flat(index: FolderIndex, decoded: DecodedPictures) -> Iterator[str]:
    flat = [n for n, info in decoded.infos.items() if info.flat]
    if flat:
        background = ", or set data.background" * any(decoded.infos[n].transparent for n in flat)
        examples = list_examples([index.paths[n] for n in flat])
        yield f"{count_files(len(flat))} of one flat color; look at them{background}: {examples}"


def _describe_duplicates(index: FolderIndex, decoded: DecodedPictures) -> Iterator[tuple[bool, str]]:
    """Yield lines about pictures that exist more than once, and whether they make accuracy or labels wrong."""
    files, found = [*decoded.infos], dict[tuple[bool, str, str], list[str]]()
    for group in find_near_duplicates(decoded.thumbnails):
        members = [files[n] for n in group]
        parts = [*dict.fromkeys(_part(index, n) for n in members)]  # in the order of the index
        labels = {index.labels[n] for n in members} - {UNKNOWN_CLASS}
        where = "in " + " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
        if {"val", "test"} & {*parts} and len(parts) > 1:
            kind = True, where, "; accuracy will be too high: remove them from one"
        elif len(labels) > 1:
            kind = True, "with different classes", "; remove the wrong ones"
        else:
            kind = False, where, ""
        found.setdefault(kind, []).append(" = ".join(index.paths[n] for n in members))
    for (warns, where, advice), paths in sorted(found.items(), reverse=True):
        pictures = "1 picture exists" if len(paths) == 1 else f"{len(paths):,} pictures exist"
        shown = list_examples(paths, MAX_LISTED) if warns else list_examples(paths)
        yield warns, f"{pictures} more than once {where}, exactly or nearly{advice}: {shown}"


def _part(index: FolderIndex, number: int) -> str:
    if number >= index.num_train:
        return "test"
    if number >= index.num_train - index.num_validation:
        return "val"
    return "unlabeled" if index.labels[number] == UNKNOWN_CLASS else "train"


def _describe_groups(index: FolderIndex) -> Iterator[str]:
    both = {*index.groups[: index.num_train]} & {*index.groups[index.num_train :]} - {""}
    if both:
        yield f"groups in train and test, accuracy may be too high: {list_examples(sorted(both), MAX_LISTED)}"


def _describe_unused(path: Path) -> str:
    return f"{path}/ ({count_files(sum(1 for _ in find_images(path)))})" if path.is_dir() else str(path)
