"""What a run prints: log records, and a progress bar where one is shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from mixmatch.output import log, shows_bars, tqdm


class Console:
    """Logs lines and warnings in the main process, and shows a progress bar on a terminal or in a notebook.

    Attributes:
        hide_bars: whether progress bars are hidden.
    """

    def __init__(self, quiet: bool = False, is_main: bool = True) -> None:
        """Set what is shown.

        Args:
            quiet: hide progress bars.
            is_main: False: log and show nothing.
        """
        self._is_main = is_main
        self.hide_bars = quiet or not is_main or not shows_bars()
        self._bar: tqdm[NoReturn] = tqdm(disable=True)  # until there is one

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

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        self._bar.update(step - self._bar.n)

    def set_postfix(self, text: str) -> None:
        """Show a text in the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def print(self, line: str) -> None:
        """Log a line of the run."""
        if self._is_main:
            log.info(line)

    def warn(self, line: str) -> None:
        """Log a warning."""
        if self._is_main:
            log.warning(line)
