"""The command ``python3 -m mixmatch``."""

import sys

from mixmatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
