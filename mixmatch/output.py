"""Where log records and progress bars go.

The package logs to the logger ``mixmatch``: what a run does at INFO, warnings at WARNING.
"""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from mixmatch.errors import single_line

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in notebooks without ipywidgets, where its bars are text
    from tqdm.auto import tqdm as tqdm

log = logging.getLogger("mixmatch")
_lock = threading.Lock()


class PrintHandler(logging.Handler):
    """Prints the records of the thread that made it, above progress bars: INFO on stdout, warnings on stderr."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.thread = threading.get_ident()
        self.before = log.level, log.propagate

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is of this thread."""
        return record.thread == self.thread

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
    """Print the log records of this thread, or drop them if ``quiet``."""
    handler = PrintHandler(logging.CRITICAL + 1 if quiet else logging.INFO)
    with _lock:
        handler.before = next((other.before for other in _print_handlers()), handler.before)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False  # or a program's own handler for warnings would print the lines once more
    try:
        yield
    finally:
        with _lock:
            log.removeHandler(handler)
            if not _print_handlers():
                level, log.propagate = handler.before
                log.setLevel(level)


def print_log_unless_configured(quiet: bool = False) -> AbstractContextManager[None]:
    """Print the log records of this thread, or drop them if ``quiet``, unless the program handles them at INFO."""
    handlers = {*log.handlers, *logging.getLogger().handlers}
    printed = {handler for handler in _print_handlers() if handler.thread == threading.get_ident()}
    configured = handlers - {*_print_handlers()} and log.isEnabledFor(logging.INFO)
    return nullcontext() if printed or configured else print_log(quiet)


def shows_bars() -> bool:
    """Return whether stderr shows progress bars: it is a terminal or belongs to a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__ == "ipykernel.iostream"


def _print_handlers() -> list[PrintHandler]:
    return [handler for handler in log.handlers if isinstance(handler, PrintHandler)]
