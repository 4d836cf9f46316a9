"""The command ``mixmatch``: its subcommands."""

import importlib
import sys
from collections.abc import Sequence

import mixmatch
from mixmatch.cli.common import command_line

SUBCOMMANDS = {
    "train": "train a model, or continue a run",
    "pseudo-label": "continue a trained run with a pseudo-label stage",
    "predict": "classify image files with a trained model",
    "label": "write a page to label pictures on, and find wrong labels",
    "compare": "compare runs in a table, a CSV file and a plot",
    "list": "list configs, data sets, methods and networks",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code, see ``run_command``.

    Args:
        arguments: of the command line; None for ``sys.argv``.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(describe_command())
        return 0
    if name == "--version":
        print(f"mixmatch {mixmatch.__version__}")
        return 0
    if name not in SUBCOMMANDS:
        print(f"error: {name!r}: unknown command; the commands are {', '.join(SUBCOMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"mixmatch.cli.{name.replace('-', '_')}")
    code: int = module.main(rest)
    return code


def describe_command() -> str:
    """Return the help text: a line for each subcommand, and an example."""
    program = command_line("train").removesuffix(" train")
    lines = [f"usage: {program} COMMAND [arguments]", ""]
    lines += [f"  {name:<14}{text}" for name, text in SUBCOMMANDS.items()]
    lines += ["", f"{program} COMMAND --help explains a command.", f"Example: {program} train --config digits"]
    return "\n".join(lines)
