"""Train MixMatch, or another method, as a config file says. `python3 main.py --help` lists every key."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, add_run, loading, run_command, stop_signals

DEFAULT_CONFIG = Path(__file__).parent / "config.yml"


def make_parser() -> Parser:
    """Return the parser of the command line, whose help lists every key."""
    import yaml

    from mixmatch.config import all_keys

    keys = []
    for key, field in all_keys():
        default = (
            yaml.safe_dump(field.get_default(call_default_factory=True), default_flow_style=True)
            .removesuffix("\n")
            .removesuffix("\n...")
        )
        keys.append(f"  {key:<34}{default:<10} {field.description or ''}")
    parser = Parser(
        usage="python3 main.py [--config FILE] [--run-dir DIRECTORY] [--check] [--import FILE] [key=value ...]",
        description="Train MixMatch, or another method. The same command again continues an unfinished run, "
        "and so does --run-dir DIRECTORY alone.",
        overrides="laid over the config: train.lr=0.03",
        epilog="keys, their defaults and what they mean:\n" + "\n".join(keys),
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML of what is not as by default (default: that of the run, or config.yml)",
    )
    add_run(parser, "default: runs/<name>-seed<seed>")
    parser.add_argument(
        "--check", action="store_true", help="read all the data, try some steps, say what is odd and how long it takes"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        with loading():
            from mixmatch.cli.check import check
            from mixmatch.config import load_config
            from mixmatch.distributed import init_distributed
            from mixmatch.runs.directory import RunDirectory
            from mixmatch.training.loop import train

        stored = options.run_dir and options.run_dir / "config.yml"
        # A start that came to nothing is corrected by other overrides, not laid under them.
        goes_on = stored and stored.exists() and (RunDirectory(options.run_dir).has_begun() or not options.overrides)
        source = options.config or (stored if goes_on else DEFAULT_CONFIG)
        config = load_config(source, options.overrides)
        path = options.run_dir or Path("runs", config.run_name())
        if options.check:
            check(config, path)
            return
        with init_distributed(config.device) as ranks:
            train(config, path, ranks, signals=stop_signals)

    return run_command(make_parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())
