"""Reproduce a table of results with one command: `python3 -m reproduce --help` says how."""

import sys

from mixmatch.cli.common import loading

if __name__ == "__main__":
    with loading():
        from reproduce.command import main
    sys.exit(main())
