"""The ways a run can end early that are not bugs in this program."""


def single_line(value: object) -> str:
    """Return text that prints anywhere as one line, whatever names and values it quotes."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def describe_error(error: Exception) -> str:
    """Return the first thing that an error says, in a line: of a pydantic error where and what is wrong."""
    details = getattr(error, "errors", None)
    if callable(details):
        first = details(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return single_line(f"{where}: {first['msg']}" if where else first["msg"])[:200]
    return single_line(str(error) or type(error).__name__)[:200]


class UserError(Exception):
    """Something that the person at the keyboard can mend: one line that says what is wrong and what to do.

    Commands print it without a traceback and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(single_line(message))


class RunInUse(UserError):
    """Another process has the run directory."""


class Diverged(Exception):
    """A loss or a weight is no longer finite. Commands print it in one line and exit with code 1."""


class PendingSignals(list[int]):
    """The numbers of the signals that a run has received, which end it after the step under way.

    Attributes:
        at_once: while it is set, none waits for that.
    """

    at_once = False


class Interrupted(KeyboardInterrupt):
    """A signal came where none waits for the end of a step.

    Attributes:
        signal: the number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


class Stopped(Exception):
    """A run was asked to stop, by SIGINT or SIGTERM, and has written a checkpoint.

    Attributes:
        signal: the number.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


class TimeUp(Exception):
    """The time given for training is over, and the run has written a checkpoint."""
