"""Do a round of pseudo-labels on a finished run: its most confident predictions become labels, and training goes on."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, add_run, loading, run_command, stop_signals


def may_change() -> tuple[str, ...]:
    """Return the keys of the run that a round may have otherwise."""
    from mixmatch.config import INTERVAL_KEYS

    return "device", "data.root", *INTERVAL_KEYS


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        usage="python3 pseudo_label.py --run-dir DIRECTORY [--output-dir DIRECTORY] [options] [key=value ...]",
        description="Go on with a trained run, its most confident predictions as labels. "
        "The same command again continues an unfinished round.",
        overrides="pseudo_label.select=top and the like, listed by main.py --help, those of pseudo_label.method's "
        "section; other keys stay the run's, but "
        f"for {', '.join(may_change())}",
    )
    add_run(parser, "of the finished run", required=True)
    parser.add_argument("--output-dir", type=Path, metavar="DIRECTORY", help="of the round (default: beside the run)")
    parser.add_argument("--allow-unfinished", action="store_true", help="take a run that is under way")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        with loading():
            from mixmatch.distributed import init_distributed
            from mixmatch.pseudo_labels.start import check_overrides, find_round, start_round
            from mixmatch.training.loop import train

        config, path = find_round(options.run_dir, options.output_dir, options.overrides)
        check_overrides(config, options.overrides, may_change())
        with init_distributed(config.device) as ranks:
            start = ranks.from_first(lambda: start_round(options.run_dir, path, config, options.allow_unfinished))
            train(start, path, ranks, signals=stop_signals)

    return run_command(make_parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())
