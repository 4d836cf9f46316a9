"""Tables in Markdown, and the statistics in their cells."""

import statistics
from collections.abc import Iterable, Sequence

MISSING = "-"  # the cell of what has not been run


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: bool = False) -> str:
    """Return a table in Markdown.

    Args:
        head: column names.
        rows: a cell for each column.
        align: pad the cells, so that the columns are aligned in a terminal.
    """
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) if align else 3 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * max(width, 3) for width in widths])
    if align:
        lines = [[cell.ljust(max(width, 3)) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(values: Iterable[float | None], spec: str = ".2f") -> str:
    """Return the mean of the values that are known."""
    known = [value for value in values if value is not None]
    return format(statistics.mean(known), spec) if known else MISSING


def mean_std(values: Iterable[float | None]) -> str:
    """Return mean ± standard deviation of the values that are known."""
    known = [value for value in values if value is not None]
    return mean(known) + (f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else "")
