"""Train a model: `python3 main.py --help`."""

import sys

from mixmatch.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
