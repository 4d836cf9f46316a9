"""The command that compares runs."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixmatch.cli.common import Parser, command_line, run_command
from mixmatch.errors import UserError

if TYPE_CHECKING:
    from mixmatch.runs.comparison import ComparedRun


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        usage=f"{command_line('compare')} RUN ... [--csv FILE] [--plot FILE.png] [--import FILE]",
        description="Compare finished runs, such as runs/*: a row for all runs that differ only in\n"
        "the seed, and a column for each setting that differs. Accuracies are mean ±\n"
        "standard deviation over the seeds.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories; files are ignored")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV, numbers in full precision")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot accuracy over steps, of unfinished runs too, to a PNG file"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""
    return run_command(make_parser, arguments, compare)


def compare(options: Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: if there is nothing to compare, or a file cannot be written.
    """
    from mixmatch.files import write_atomically
    from mixmatch.runs.comparison import comparison_csv, comparison_table, group_runs, read_run

    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise UserError(f"--plot: must end in .png, got {options.plot}")
    if options.plot is not None and options.plot == options.csv:
        raise UserError("--plot: is the file of --csv; choose another")
    runs, notes = [], []
    for path in {path.resolve(): path for path in options.runs}.values():  # each run once
        try:
            if not path.is_file():
                runs.append(read_run(path))
        except UserError as error:
            notes.append(f"left out: {error}")
    unfinished = [run.path for run in runs if run.results is None]
    notes += [f"left out: {path}: not finished; the command that started it continues it" for path in unfinished]
    finished = group_runs([run for run in runs if run.results is not None])
    if not finished and (options.csv or not options.plot or not runs):
        raise UserError("none of these is a finished run" + "".join(f"; {note}" for note in notes[:3]))
    if finished:
        print(comparison_table(finished))
    print(*notes, sep="\n", end="\n" * bool(notes))
    if options.csv is not None:
        write_atomically(options.csv, comparison_csv(finished).encode())
        print(f"{options.csv}: written")
    if options.plot is not None:
        plot(runs, options.plot)


def plot(runs: Sequence["ComparedRun"], file: Path) -> None:
    """Write the curves of runs to a PNG file: test accuracy, or validation accuracy if there is no test set.

    Raises:
        UserError: if no run has been evaluated, or the file cannot be written.
    """
    from mixmatch.files import write_atomically
    from mixmatch.runs.comparison import group_runs
    from mixmatch.runs.plots import plot_curves, to_png

    accuracy = "test" if any(run.curve("test_accuracy") for run in runs) else "validation"
    plotted = [run for run in runs if run.curve(f"{accuracy}_accuracy")]
    if not plotted:
        raise UserError("--plot: none of these runs has been evaluated on test or validation images yet")
    for run in runs:
        if run not in plotted:
            print(f"not in the plot: {run.path}: has no {accuracy} accuracy yet")
    curves = [group.curves(f"{accuracy}_accuracy") for group in group_runs(plotted)]
    write_atomically(file, to_png(plot_curves(curves, f"{accuracy} accuracy")))
    print(f"{file}: written")
