"""A look at a folder of photographs before hours are spent on it: what is there, what is odd, what would not work."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from mixmatch.data.dataset import Report
from mixmatch.data.folder.dataset import Decoded, FolderSettings, count_files, read_pictures
from mixmatch.data.folder.decode import find_images
from mixmatch.data.folder.index import NOT_KNOWN, FolderIndex, list_photographs
from mixmatch.errors import UserError, single_line

TWINS_NAMED = 20  # groups of the same picture, or of one name
LONGEST_NAME = 40


def look_at_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> Report:
    """Read every file below ``settings.root``, and tell what is there; arguments as for ``load_folder``.

    Raises:
        UserError: if a folder or the table of labels cannot be read, or there is no room for the images.
    """
    listing = list_photographs(Path(settings.root), settings.labels)
    decoded = read_pictures(listing, settings, device, quiet)
    unreadable = [f"{listing.files[i]}: {why}" for i, why in decoded.unreadable.items()]
    lines = [
        *_describe_classes(listing, decoded),
        *_describe_pictures(listing, decoded),
        *_describe_twins(listing, decoded),
        *_describe_groups(listing),
        *(f"nothing looks at {_describe_stray(path)}" for path in listing.strays),
    ]
    problems = list(listing.problems)
    if settings.skip_unreadable:
        lines += [f"left out: {line}" for line in unreadable]
    elif unreadable:
        problems += [f"cannot be read: {line}" for line in unreadable]
        lines.append(f"cannot be read: {count_files(len(unreadable))}; data.skip_unreadable=true leaves such files out")
    return Report([*lines, *decoded.notes], problems)


def _describe_classes(listing: FolderIndex, decoded: Decoded) -> Iterator[str]:
    readable = [(n, label) for n, label in enumerate(listing.labels) if n not in decoded.unreadable]
    train = Counter(label for n, label in readable if n < listing.num_train)
    test = Counter(label for n, label in readable if n >= listing.num_train)
    names = [single_line(name)[:LONGEST_NAME] for name in listing.classes]
    width = max([len("unlabeled"), *(len(name) for name in names)])
    yield f"{listing.root}: {count_files(len(listing.files))}"
    yield f"  {'class':<{width}}   train    test"
    for number, name in enumerate(names):
        yield f"  {name:<{width}}{train[number]:>8,}{test[number]:>8,}"
    yield f"  {'unlabeled':<{width}}{train[NOT_KNOWN]:>8,}"


def _describe_pictures(listing: FolderIndex, decoded: Decoded) -> Iterator[str]:
    read = [n for n in range(len(listing.files)) if n not in decoded.unreadable]
    if not read:
        return
    facts = decoded.facts[read]
    kinds = Counter(facts[:, 3].tolist())
    yield "formats: " + "; ".join(f"{count:,} {decoded.kinds[kind]}" for kind, count in kinds.most_common())
    shapes = sorted(map(tuple, facts[:, :2].tolist()), key=lambda shape: (shape[0] * shape[1], shape))
    least, middle, most = (f"{w}x{h}" for w, h in (shapes[0], shapes[len(shapes) // 2], shapes[-1]))
    yield f"sizes: from {least} to {most} pixels, half of them up to {middle}"
    side = decoded.images.shape[1]
    small = int((facts[:, :2].min(dim=1).values < side).sum())
    if small:
        has = "has" if small == 1 else "have"
        yield f"{count_files(small)} {has} a side below {side} pixels and will be enlarged (data.image_size)"
    for n in decoded.several_pages():
        yield f"only the first page is used of {listing.files[n]}"


def _describe_twins(listing: FolderIndex, decoded: Decoded) -> Iterator[str]:
    """Name the pictures that are there more than once, first those that make a figure or a label wrong."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for n, image in enumerate(decoded.images):
        if n not in decoded.unreadable:
            same[hashlib.blake2b(image.numpy().tobytes()).digest()].append(n)
    twins: dict[str, list[list[int]]] = {"in train and in test": [], "of two classes": [], "": []}
    for group in same.values():
        if len(group) > 1:
            known = {listing.labels[n] for n in group} - {NOT_KNOWN}
            across = group[0] < listing.num_train <= group[-1]
            twins["in train and in test" if across else "of two classes" if len(known) > 1 else ""].append(group)
    for where, groups in twins.items():
        text = "the same picture" + f" {where}" * bool(where)
        for group in groups[:TWINS_NAMED]:
            yield f"{text}: {', '.join(listing.place(listing.files[n]) for n in group)}"
        if len(groups) > TWINS_NAMED:
            yield f"{text}: {len(groups) - TWINS_NAMED:,} more"


def _describe_groups(listing: FolderIndex) -> Iterator[str]:
    train, test = set(listing.groups[: listing.num_train]), set(listing.groups[listing.num_train :])
    both = sorted((train & test) - {""})
    for group in both[:TWINS_NAMED]:
        yield f"group {group!r} is in train and in test"
    if len(both) > TWINS_NAMED:
        yield f"{len(both) - TWINS_NAMED:,} more groups are in train and in test"


def _describe_stray(path: Path) -> str:
    if not path.is_dir():
        return str(path)
    try:
        return f"{path}/ ({count_files(sum(1 for _ in find_images(path)))})"
    except UserError as error:
        return f"{path}/ ({error})"
