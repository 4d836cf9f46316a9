"""The command that continues a trained run with a pseudo-label stage."""

from argparse import Namespace
from collections.abc import Sequence

from mixmatch.cli.common import Parser, add_run_dir, command_line, directory, next_steps, run_command


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        usage=f"{command_line('pseudo-label')} --run-dir DIRECTORY [--output-dir DIRECTORY] [options] [key=value ...]",
        description="Continue a trained run with a pseudo-label stage: by another method\n"
        "(pseudo_label.method=softmatch, recommended), or with confident predictions as labels.\n"
        "The same command resumes an unfinished stage.",
        overrides="overrides of the config: pseudo_label.select=top; keys of pseudo_label, and of the method that "
        f"pseudo_label.method names, see `{command_line('train')} --help`, and device, paths and intervals",
    )
    add_run_dir(parser, "directory of the trained run", required=True)
    parser.add_argument(
        "--output-dir", type=directory, metavar="DIRECTORY", help="directory of the stage (default: next to the run)"
    )
    parser.add_argument("--allow-unfinished", action="store_true", help="accept a run that is not finished")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""
    return run_command(make_parser, arguments, train_stage)


def train_stage(options: Namespace) -> None:
    """Start or resume the stage that the command line asks for.

    Raises:
        UserError, Diverged, Stopped: as ``mixmatch.train``.
    """
    from mixmatch.distributed import init_distributed
    from mixmatch.pseudo_labels.start import find_stage, start_stage
    from mixmatch.training.loop import train

    config, path = find_stage(options.run_dir, options.output_dir, options.overrides)
    with init_distributed(config.device) as distributed:
        config, start = distributed.broadcast_from_main(
            lambda: start_stage(options.run_dir, path, config, options.allow_unfinished)
        )
        results = train(config, path, distributed, start=start)
        if distributed.is_main:
            print(*next_steps(results, path, options.imports), sep="\n")
