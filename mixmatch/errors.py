"""Errors that end a command with one line and an exit code."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pydantic import ValidationError

P = ParamSpec("P")
T = TypeVar("T")


class UserError(Exception):
    """An error that the user can fix: one line with what is wrong and what to do.

    Commands print it without a traceback and exit with code 2.

    Attributes:
        printed_by_main: whether it is that of the main process, which prints it.
    """

    printed_by_main = False

    def __init__(self, message: str) -> None:
        super().__init__(single_line(message))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class RunInUse(UserError):
    """Another process is using the run directory."""


class Diverged(Exception):
    """A loss or weight is not finite. Commands print it in one line and exit with code 1."""


class TimeUp(Exception):
    """The time given for training is over, and a checkpoint is written."""


class Interrupted(KeyboardInterrupt):
    """Ended at once by a signal. It is not an Exception, so that a loop over runs that catches those ends, too.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int, message: str = "interrupted; start it again to continue") -> None:
        super().__init__(message)
        self.signal = signal

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [str(self)]


def short_tracebacks(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that users call: tracebacks do not show the frames of this package, unless it has a fault.

    A notebook keeps the last error, and frames would keep the trainer with its images.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (UserError, Diverged, TimeUp, Stopped) as error:
            last = error
        last.__context__ = last.__cause__ = None
        raise last.with_traceback(None)

    return call


class Stopped(Interrupted):
    """Stopped by a signal; what is done is saved, and the same command or call continues."""


def single_line(value: object) -> str:
    """Return text as one line of printable characters."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def describe_error(error: Exception) -> str:
    """Return the message of an error in one line; of a pydantic error, its first problem."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return single_line(": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"]))))[:200]
    return single_line(str(error) or type(error).__name__)[:200]
