"""Stops what takes long, and can be continued, at SIGINT and SIGTERM."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mixmatch.errors import Interrupted


class PendingSignals(list[int]):
    """Numbers of the signals received; they stop the work after its current step.

    Attributes:
        at_once: whether a signal raises Interrupted instead.
    """

    at_once = False


@contextmanager
def catch_stop_signals() -> Iterator[PendingSignals]:
    """Collect SIGINT and SIGTERM, so that the work stops after its current step; a second SIGINT stops it at once.

    Outside of the main thread, which alone can set handlers, signals are left alone.
    """
    pending = PendingSignals()

    def handle(number: int, frame: object) -> None:
        if pending.at_once or (pending and number == signal.SIGINT):
            raise Interrupted(number)
        pending.append(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell starts background jobs with SIGINT ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
