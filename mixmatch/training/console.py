"""What a person sees of a run while it trains."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from mixmatch.errors import single_line


def printable(line: str) -> str:
    """Return a line that prints anywhere, whatever names it quotes; columns stay where they are if they can."""
    return line if line.isprintable() else single_line(line)


class Console:
    """A progress bar on a terminal, else a line at each evaluation; or nothing but warnings.

    A rank that does not speak prints nothing at all.
    """

    def __init__(self, quiet: bool = False, speaks: bool = True) -> None:
        """Choose what is shown.

        Args:
            quiet: print nothing but warnings.
            speaks: False for a rank that is not the first.
        """
        self.speaks = speaks
        self.quiet = quiet or not speaks
        self.quiet_bars = self.quiet or not sys.stderr.isatty()
        self._bar: tqdm | None = None

    @contextmanager
    def bar(self, step: int, steps: int) -> Iterator[None]:
        """Show a progress bar, if there is a terminal to show it on."""
        with tqdm(
            total=steps,
            initial=step,
            disable=self.quiet_bars,
            dynamic_ncols=True,
            mininterval=1,
            miniters=1,
            bar_format="{n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix} {bar}",
        ) as self._bar:
            yield

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Say what is being done while nothing moves: with a running clock on a terminal, else in a line."""
        if self.quiet_bars:
            self.say(f"{what} ...")
            yield
            return
        ended = threading.Event()
        with tqdm(bar_format="{elapsed} {desc}", desc=what, leave=False) as clock:

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
        """Move the bar to ``step``; it is drawn once a second."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Let the bar say something from now on."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def report(self, line: str) -> None:
        """Print a line beside the bar."""
        if not self.quiet:
            tqdm.write(printable(line))
            sys.stdout.flush()

    def say(self, line: str) -> None:
        """Print a line about the run as a whole."""
        if not self.quiet:
            print(printable(line), flush=True)

    def warn(self, line: str) -> None:
        """Print a warning, also where all else is quiet."""
        if self.speaks:
            tqdm.write(f"warning: {printable(line)}", file=sys.stderr)
