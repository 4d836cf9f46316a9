"""The command that trains a run, or checks that it would train."""

import json
import shutil
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, add_run_dir, command_line, next_steps, run_command
from mixmatch.errors import UserError


def make_parser(default_config: Path | None = None) -> Parser:
    """Return the parser of the command line; its help lists every key. Arguments as for ``main``."""
    fallback = "config.yml in the current directory if there is one, or the paper's CIFAR-10 run"
    if default_config is not None:
        fallback = f"{default_config.name} of the checkout"
    parser = Parser(
        usage=f"{command_line('train')} [--config CONFIG] [--run-dir DIRECTORY] [--check] "
        "[--refresh-cache] [--import FILE] [key=value ...]",
        description="Train a model on few labels. The same command resumes an unfinished run;\nso does --run-dir.",
        overrides="overrides of the config: train.lr=0.03",
        epilog=f"keys, defaults and meanings:\n{describe_keys(shutil.get_terminal_size().columns)}",
    )
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="CONFIG",
        help=f"YAML file with the keys that differ from the defaults, or a name that `{command_line('list')}` lists; "
        f"can be repeated, later ones win (default: the config stored in the run directory, or {fallback})",
    )
    add_run_dir(parser, "directory of the run (default: runs/<name>[-<method>]-seed<seed>)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="train nothing: read all data, try a few steps, report problems and the expected time",
    )
    parser.add_argument("--refresh-cache", action="store_true", help="decode the pictures of a folder again")
    parser.set_defaults(default_config=default_config)
    return parser


def describe_keys(width: int) -> str:
    """Return each key of the config with its default and, below it, its description in lines of ``width``."""
    from mixmatch.config import all_keys

    lines = []
    for key, field in all_keys():
        default = field.get_default(call_default_factory=True)
        lines.append(f"  {key} = {default if isinstance(default, str) else json.dumps(default)}")
        lines += textwrap.wrap(field.description or "", width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, default_config: Path | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``.

    Args:
        arguments: of the command line; None for ``sys.argv``.
        default_config: used without ``--config``; None: config.yml in the current directory if there is one.
    """
    return run_command(lambda: make_parser(default_config), arguments, train_or_check)


def train_or_check(options: Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError, Diverged, Stopped: as ``mixmatch.train``.
    """
    from mixmatch.cli.check import check
    from mixmatch.config import load_config
    from mixmatch.data.folder.cache import cache_folder, remove_caches
    from mixmatch.data.folder.settings import FolderSettings
    from mixmatch.distributed import init_distributed
    from mixmatch.pseudo_labels.start import stage_path
    from mixmatch.runs.directory import RunDirectory
    from mixmatch.training.loop import train

    in_folder = Path("config.yml")
    source = options.config or options.default_config or (in_folder if in_folder.exists() else None)
    if options.run_dir and not options.config:
        stored = RunDirectory(options.run_dir).config_file
        source = stored if stored.exists() else source
    config = load_config(source, options.overrides)
    path = options.run_dir or Path("runs", config.run_name())
    cache = cache_folder(config.data) if isinstance(config.data, FolderSettings) else None
    if options.refresh_cache and cache is None:
        raise UserError("--refresh-cache: only data.dataset=folder has a cache of decoded pictures, see data.cache")
    if options.check:
        if options.refresh_cache and cache:
            remove_caches(cache)
        check(config, path)
        return
    with init_distributed(config.device) as distributed:
        if options.refresh_cache and cache and distributed.is_main:
            remove_caches(cache)
        results = train(config, path, distributed)
        if distributed.is_main:
            stage = config.pseudo_label
            print(*next_steps(results, stage_path(path, stage) if stage.enabled else path, options.imports), sep="\n")
