"""The command that writes a page to label pictures on."""

import itertools
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixmatch.cli.common import Parser, add_model_options, command_line, run_command
from mixmatch.errors import UserError
from mixmatch.settings import to_name

if TYPE_CHECKING:
    from mixmatch.config import Config
    from mixmatch.data.folder.index import FolderIndex


def make_parser() -> Parser:
    """Return the parser of the command line."""
    from mixmatch.labeling.choose import CHOICES

    parser = Parser(
        usage=f"{command_line('label')} RUN [FOLDER] [options]",
        description="Write an HTML page on which pictures are labeled with a key each, those first that are worth\n"
        "a label. It also shows labeled pictures, those first that the other labels contradict.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="pictures (default: those of the run)")
    parser.add_argument(
        "--count", type=int, default=200, metavar="N", help="most pictures to label, and to review (default: 200)"
    )
    parser.add_argument(
        "--choose",
        choices=CHOICES,
        default="mixed",
        help="which: uncertain (lowest confidence), margin (two classes nearly as likely), diverse (unlike each "
        "other), mixed (margin and diverse, the default) or random",
    )
    add_model_options(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("label.html"), metavar="FILE", help="the page (default: label.html)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""
    return run_command(make_parser, arguments, write_label_page)


def write_label_page(options: Namespace) -> None:
    """Write the page, and print what to do next.

    Raises:
        UserError: if there is no folder of color pictures, or a file cannot be read or written.
    """
    import torch

    from mixmatch.config import build_config
    from mixmatch.data.folder.cache import CHANNELS
    from mixmatch.data.folder.dataset import count_files, list_examples, read_pictures
    from mixmatch.data.folder.settings import FolderSettings
    from mixmatch.data.stored_images import select
    from mixmatch.inference import load_model
    from mixmatch.labeling.page import write_page
    from mixmatch.labeling.selection import LABELS_FILE, index_pictures, select_pictures
    from mixmatch.output import log, shows_bars
    from mixmatch.runs.directory import RunDirectory
    from mixmatch.training.device import choose_device, explain_out_of_memory

    if options.count < 1:
        raise UserError(f"--count: must be 1 or more, got {options.count}")
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: writes an HTML file, {options.output} must end in .html")
    if not options.output.resolve().parent.is_dir():
        raise UserError(f"--output: the folder of {options.output} does not exist; make it, or use another")
    run = RunDirectory(options.run)
    config = run.read_config()
    settings = config.data
    if not isinstance(settings, FolderSettings):
        if options.folder is None:
            raise UserError(f"{options.run}: was not trained on a folder of pictures; give a FOLDER")
        settings = FolderSettings(dataset="folder")
    device = choose_device(build_config({"device": options.device}, "--device").device)
    with explain_out_of_memory(device):
        model = load_model(options.run, str(device), options.best)
    if model.spec.channels != CHANNELS:
        raise UserError(f"{options.run}: its network takes no color images; train one on a folder of pictures")
    settings = settings.model_copy(update={"image_size": model.spec.size})
    own = Path(config.data.root).resolve() if isinstance(config.data, FolderSettings) else None
    if options.folder is not None:
        if own in options.folder.resolve().parents:
            raise UserError(f"{options.folder}: is part of {own}, the run's pictures; leave FOLDER out")
        labels = settings.labels if options.folder.resolve() == own else None
        settings = settings.model_copy(update={"root": str(options.folder), "labels": labels})
    root = Path(settings.root)
    if options.folder is None and not root.exists():
        raise UserError(f"{root}: the run's pictures are not there; start where it was trained, or give a FOLDER")
    index = index_pictures(root, settings.labels, min_classes=2 if options.folder is None else 0)
    decoded, notes = read_pictures(index, settings, torch.device("cpu"), quiet=not shows_bars())
    if decoded.unreadable:
        examples = list_examples([index.paths[number] for number in decoded.unreadable])
        notes = [*notes, f"{count_files(len(decoded.unreadable))} cannot be read as pictures: {examples}"]
    for note in (*index.notes, *notes):
        log.info(f"note: {note}")
    numbers = [number for number in decoded.infos if number < index.num_train - index.num_validation]
    images = select(decoded.images, range(len(numbers)))
    with explain_out_of_memory(device):
        selection = select_pictures(model, index, numbers, images, options.count, options.choose)
    size = write_page(options.output, selection, root, settings.decoding)

    chosen, labeled = selection.num_chosen, selection.items[selection.num_chosen :]
    doubtful = f"{selection.num_contradicted} labels look like another class"
    review = f", {len(labeled)} labeled ones to review ({doubtful})" if labeled else ""
    print(f"{options.output}: {chosen} of {selection.num_unlabeled} unlabeled pictures{review}, {size / 1e6:.1f} MB")
    replaced = "; it replaces the one there, whose labels it has" if (root / LABELS_FILE).exists() else ""
    train = next_settings(config, options.run, model.spec.size, root, index)
    if decoded.unreadable and not settings.skip_unreadable:
        train.append("data.skip_unreadable=true")
    train.append(f"name={free_name(config, options.run)}")
    for path in options.imports:
        train += ["--import", str(path)]
    if own != root.resolve():
        print(f"note: this is for training on {root} alone, without the images of {options.run}")
    print(f"1. Open it in a browser, label, and save {LABELS_FILE}.")
    print(f"2. Move {LABELS_FILE} to {root}{replaced}.")
    saved = run.load_newest()
    if saved is not None and saved[1].parent_method:
        print(f"3. Train the run that {options.run} continued, with {shlex.join(train)}; then this stage.")
    else:
        print(f"3. {command_line('train')} {shlex.join(['--config', str(run.config_file), *train])}")


def next_settings(config: "Config", run: Path, image_size: int, root: Path, index: "FolderIndex") -> list[str]:
    """Return what a run on the labeled pictures sets otherwise than the run before, as ``key=value``.

    Args:
        config: of the run before.
        run: its directory.
        image_size: of its images.
        root: folder of the pictures.
        index: of the folder.
    """
    from mixmatch.data.folder.settings import FolderSettings
    from mixmatch.labeling.selection import LABELS_FILE

    data, has_validation = config.data, index.num_validation > 0
    of_folder = isinstance(data, FolderSettings)
    elsewhere = not of_folder or root.resolve() != Path(data.root).resolve()
    has_test = len(index.files) > index.num_train
    # With more labels, other images are sampled for validation and testing; the run before may have trained on them.
    may_continue = not of_folder or (not data.num_test and (has_validation or not data.num_validation))
    settings = {
        "data.dataset=folder": not of_folder,
        f"data.image_size={image_size}": not of_folder,
        "data.num_labeled=all": data.num_labeled != "all",
        "data.split_file=null": data.split_file is not None,
        "data.num_test=0": data.num_test and (has_test or has_validation),
        "data.num_validation=auto": data.num_validation not in (0, "auto") and (elsewhere or has_validation),
        "train.patience=null": config.train.patience is not None and elsewhere and not has_validation,
        f"init_from={run}": may_continue,
        "init_from=null": not may_continue and config.init_from is not None,
    }
    return [f"data.root={root}", f"data.labels={LABELS_FILE}", *(text for text, needed in settings.items() if needed)]


def free_name(config: "Config", run: Path) -> str:
    """Return a name for a run with more labels, ``<name>-labeled`` or with a number, that no run has yet.

    Args:
        config: of the run before.
        run: its directory.
    """
    base = re.sub(r"-labeled(-\d+)?$", "", config.name or run.resolve().name.removesuffix(f"-seed{config.seed}"))
    base = to_name(base)[:80] or "run"
    for number in itertools.count(1):
        name = f"{base}-labeled" + f"-{number}" * (number > 1)
        directory = config.model_copy(update={"name": name}).run_name()
        if not any((folder / directory).exists() for folder in (run.resolve().parent, Path("runs"))):
            break
    return name
