"""Train a model: `python3 main.py --help`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with the ``config.yml`` next to this file as the default, and return its exit code."""
    return train.main(arguments, default_config=Path(__file__).resolve().with_name("config.yml"))


if __name__ == "__main__":
    sys.exit(main())
