"""The command ``python3 -m reproduce``."""

import sys

if __name__ == "__main__":
    try:
        from reproduce.command import main  # takes seconds
    except KeyboardInterrupt:
        print("interrupted; start it again to continue", file=sys.stderr)
        sys.exit(130)
    sys.exit(main())
