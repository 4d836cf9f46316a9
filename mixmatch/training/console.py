"""Terminal output of a run."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm

from mixmatch.errors import single_line


class Console:
    """A progress bar on a terminal, else one line per evaluation.

    Attributes:
        hide_bars: whether progress bars are hidden.
    """

    def __init__(self, quiet: bool = False, is_main: bool = True) -> None:
        """Set what is printed.

        Args:
            quiet: print warnings only.
            is_main: False: print nothing at all.
        """
        self._is_main = is_main
        self._quiet = quiet or not is_main
        self.hide_bars = self._quiet or not sys.stderr.isatty()
        self._bar: tqdm[NoReturn] | None = None

    @contextmanager
    def bar(self, step: int, num_steps: int) -> Iterator[None]:
        """Show a progress bar."""
        with tqdm(
            total=num_steps,
            initial=step,
            disable=self.hide_bars,
            dynamic_ncols=True,
            mininterval=1,
            miniters=1,
            bar_format="{n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix} {bar}",
        ) as self._bar:
            yield

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show what takes long: with a running clock on a terminal, else in a line."""
        if self.hide_bars:
            self.print(f"{text} ...")
            yield
            return
        ended = threading.Event()
        with tqdm(bar_format="{elapsed} {desc}", desc=text, leave=False) as clock:

            def tick() -> None:
                while not ended.wait(1):
                    clock.refresh()

            thread = threading.Thread(target=tick, daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def set_postfix(self, text: str) -> None:
        """Show a text in the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def print(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self._quiet:
            tqdm.write(_printable(line))
            sys.stdout.flush()

    def warn(self, line: str) -> None:
        """Print a warning, even if quiet."""
        if self._is_main:
            tqdm.write(f"warning: {_printable(line)}", file=sys.stderr)


def _printable(line: str) -> str:
    """Return a line that any terminal prints, whatever names it quotes; spaces stay if nothing must be replaced."""
    return line if line.isprintable() else single_line(line)
