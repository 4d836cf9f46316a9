"""The command that trains a run, or checks that it would train."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, add_run_dir, catch_stop_signals, run_command

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "config.yml"


def make_parser() -> Parser:
    """Return the parser of the command line; its help lists every key."""
    parser = Parser(
        usage="python3 main.py [--config FILE] [--run-dir DIRECTORY] [--check] [--import FILE] [key=value ...]",
        description="Train a model on few labels. The same command resumes an unfinished run; so does --run-dir alone.",
        overrides="overrides of the config: train.lr=0.03",
        epilog=f"keys, defaults and meanings:\n{describe_keys()}",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML with overrides of the defaults (default: the config stored in the run directory, or config.yml)",
    )
    add_run_dir(parser, "directory of the run (default: runs/<name>-seed<seed>)")
    parser.add_argument(
        "--check", action="store_true", help="read all data, try a few steps, report problems and the expected time"
    )
    return parser


def describe_keys() -> str:
    """Return a line for each key of the config."""
    from mixmatch.config import all_keys

    lines = []
    for key, field in all_keys():
        default = field.get_default(call_default_factory=True)
        text = default if isinstance(default, str) else json.dumps(default)
        lines.append(f"  {key:<34}{text:<10} {field.description or ''}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""
    return run_command(make_parser, arguments, train_or_check)


def train_or_check(options: Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError, Diverged, Stopped: as ``mixmatch.train``.
    """
    from mixmatch.cli.check import check
    from mixmatch.config import load_config
    from mixmatch.distributed import init_distributed
    from mixmatch.runs.directory import RunDirectory
    from mixmatch.training.loop import train

    source = options.config or DEFAULT_CONFIG
    if options.run_dir and not options.config:
        run = RunDirectory(options.run_dir)
        # Before the first checkpoint, other overrides replace those that the run was started with.
        if run.config_file.exists() and (run.has_begun() or not options.overrides):
            source = run.config_file
    config = load_config(source, options.overrides)
    path = options.run_dir or Path("runs", config.run_name())
    if options.check:
        check(config, path)
        return
    with init_distributed(config.device) as distributed:
        train(config, path, distributed, signals=catch_stop_signals)
