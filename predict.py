"""Classify images with a trained model: `python3 predict.py --help`."""

import sys

from mixmatch.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
