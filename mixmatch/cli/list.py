"""The command that lists configs, data sets, methods and networks."""

import shutil
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence

from mixmatch.cli.common import Parser, command_line, run_command


def make_parser() -> Parser:
    """Return the parser of the command line."""
    return Parser(
        usage=f"{command_line('list')} [--import FILE]",
        description="List the names that configs and the command line can use.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""
    return run_command(make_parser, arguments, print_names)


def print_names(options: Namespace) -> None:
    """Print the names of configs, data sets, methods and networks."""
    from mixmatch.config import config_names
    from mixmatch.config.load import CONFIGS
    from mixmatch.data import DATASETS
    from mixmatch.methods import METHODS
    from mixmatch.models import MODELS

    configs = {name: (CONFIGS / f"{name}.yml").read_text(encoding="utf-8").lstrip("# ") for name in config_names()}
    print_section("configs: --config NAME", configs)
    print_section("data sets: data.dataset=NAME", dict.fromkeys(DATASETS))
    print_section("methods: method=NAME", {name: method.__doc__ for name, method in METHODS.items()})
    print_section("networks: model.network=NAME", {name: network.__doc__ for name, network in MODELS.items()})


def print_section(title: str, texts: Mapping[str, str | None]) -> None:
    """Print names, each with the first sentence of its text, as wide as the terminal."""
    width, indent = shutil.get_terminal_size().columns, max(map(len, texts)) + 4
    print(title)
    for name, text in texts.items():
        line = f"  {name:<{indent - 2}}{first_sentence(text or '')}".rstrip()
        print(textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False))
    print()


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, or its first line if that is shorter."""
    line = text.strip().partition("\n")[0]
    return line.partition(". ")[0].removesuffix(".")
