"""Where log records and progress bars go.

The package logs to the logger ``mixmatch``: what a run does at INFO, warnings at WARNING.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from mixmatch.errors import single_line

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in notebooks without ipywidgets, where its bars are text
    from tqdm.auto import tqdm as tqdm

log = logging.getLogger("mixmatch")


class PrintHandler(logging.Handler):
    """Prints records above progress bars: INFO on stdout, warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record in one line."""
        line = record.getMessage()
        line = line if line.isprintable() else single_line(line)  # any terminal prints it, whatever names it quotes
        if record.levelno >= logging.WARNING:
            tqdm.write(f"warning: {line}", file=sys.stderr)
        else:
            tqdm.write(line)
            sys.stdout.flush()


@contextmanager
def print_log(quiet: bool = False) -> Iterator[None]:
    """Print log records, or drop them if ``quiet``."""
    handler = PrintHandler(logging.CRITICAL + 1 if quiet else logging.INFO)
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # or a program's own handler for warnings would print the lines once more
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
        log.setLevel(level)


def print_log_unless_configured(quiet: bool = False) -> AbstractContextManager[None]:
    """Print log records, or drop them if ``quiet``, unless they are printed or handled at INFO already."""
    printed = any(isinstance(handler, PrintHandler) for handler in log.handlers)  # perhaps only warnings
    configured = log.hasHandlers() and log.isEnabledFor(logging.INFO)
    return nullcontext() if printed or configured else print_log(quiet)


def shows_bars() -> bool:
    """Return whether stderr shows progress bars: it is a terminal or belongs to a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__ == "ipykernel.iostream"
