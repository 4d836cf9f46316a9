"""What every command of this project does alike: read its arguments, and end with a documented exit code."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mixmatch.errors import Diverged, Stopped, UserError, one_line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, for ``[options] [key=value ...]`` or for options alone."""

    def __init__(self, usage: str, description: str, epilog: str | None = None, overrides: str | None = None) -> None:
        super().__init__(
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if overrides:
            self.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        raise UserError(f"{message}; see --help")


def run_command(body: Callable[[], object]) -> int:
    """Do ``body`` and return the exit code.

    Returns:
        0 done, 1 diverged, 2 something that the user can mend (said in one line), 128 + N stopped by signal N.
    """
    rank = os.environ.get("RANK", "0")  # of the processes that torchrun has started
    try:
        body()
    except Stopped as stop:
        if rank == "0":
            print(stop)
        return 128 + stop.signal
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output is gone: end as silently as other programs do
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return 141
    except (UserError, OSError) as error:  # the system's own: such as a full disk behind a redirected output
        print(f"error: {f'rank {rank}: ' * (rank != '0')}{one_line(error)}", file=sys.stderr)
        return 2
    return 0
