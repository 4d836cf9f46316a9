"""Continue a trained run with a pseudo-label stage: `python3 pseudo_label.py --help`."""

import sys

from mixmatch.cli.pseudo_label import main

if __name__ == "__main__":
    sys.exit(main())
