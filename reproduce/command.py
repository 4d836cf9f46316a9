"""Reproduce a table of results with one command: train the runs that it is made of, and print it.

    python3 -m reproduce --list                             # the tables, and how much of each is there
    python3 -m reproduce labels --data digits               # train what is not trained yet, print the table
    python3 -m reproduce labels --data digits --minutes 9   # for so long; the same command goes on
    python3 -m reproduce --render README.md                 # write the tables in a file anew, training nothing
    python3 -m reproduce --compare runs/*                   # finished runs by what differs, over seeds

Runs are ordinary run directories under runs/, seed 1 of every row first. To train several at once, start the command
several times: each takes the runs that no other has.
"""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, run_command, stop_signals
from mixmatch.errors import Diverged, RunInUse, TimeUp, UserError
from mixmatch.files import write_atomically
from mixmatch.pseudo_labels.start import start_round
from mixmatch.runs.directory import RunDirectory
from mixmatch.training.loop import train
from mixmatch.training.results import summarize
from reproduce.compare import compare_runs
from reproduce.results import RunResult, read_lines, render, render_into, result_file, save_result
from reproduce.tables import (
    TABLES,
    RunSpec,
    Table,
    arguments_of,
    find_table,
    in_order,
    read_table,
    table_files,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        if (options.list or options.render or options.compare) and options.table:
            raise UserError("--list, --render and --compare train nothing: give no table with them")
        if options.list:
            print(list_tables(options))
        elif options.render is not None:
            render_file(options.render, options)
        elif options.compare:
            text, notes = compare_runs(options.compare)
            print(text, *notes, sep="\n")
        elif options.table is not None:
            reproduce(read_table(find_table(options.table, options.data, options.tables)), options)
        else:
            raise UserError("TABLE: none is given; --list lists them")

    return run_command(make_parser, arguments, body)


def make_parser() -> Parser:
    """Return the parser of the command line."""
    usage = "python3 -m reproduce [TABLE [--data NAME] | --list | --render FILE | --compare RUN ...] [options]"
    parser = Parser(usage, __doc__ or "")
    parser.add_argument("table", nargs="?", help="labels, pseudo, ablation, demo, or a table file (.yml) of yours")
    parser.add_argument("--data", metavar="NAME", help="of which data (default: cifar10, or the only one there is)")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--list", action="store_true", help="list the tables, and train nothing")
    alone.add_argument("--render", type=Path, metavar="FILE", help="write the tables in FILE anew, train nothing")
    alone.add_argument("--compare", type=Path, nargs="+", metavar="RUN", help="compare finished runs, train nothing")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these of the table's seeds (default: all)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, with a checkpoint")
    parser.add_argument("--missing", action="store_true", help="train only runs that have no result yet")
    parser.add_argument("--quiet", action="store_true", help="print a line for each run only")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the run directories (default: runs)")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of table files (default: this project's)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of result files (default: the committed ones, or beside a table of yours)",
    )
    return parser


def reproduce(table: Table, options: Namespace) -> None:
    """Train a table's runs as the command line says, and print it.

    Raises:
        UserError: if something in the options does not work.
        Diverged: when all the others are trained, if a run did.
    """
    deadline = time.monotonic() + 60 * options.minutes
    asked = table
    if options.seeds is not None:
        if not {*options.seeds} <= {*table.seeds}:
            raise UserError(f"--seeds: the table's are {', '.join(map(str, table.seeds))}")
        asked = table.model_copy(update={"seeds": options.seeds})
    runs = in_order(asked)
    file = result_file(table, options.results)
    kept = read_lines(file)  # if it is none, that is said now
    if options.missing:
        missing = [run for run in runs if run.name not in kept]
        parents = {run.parent.name for run in missing if run.parent is not None}
        runs = [run for run in runs if run in missing or run.name in parents]
    complete = train_runs(runs, table, file, options, deadline)
    print(f"\n{render(asked, options.results)}\n")
    print("complete" if complete else "not complete; the same command goes on")
    print(f"curves: tensorboard --logdir {options.runs}")


def list_tables(options: Namespace) -> str:
    """Return a line for each table: its command, how many of its runs have results, how many of another config."""
    lines = []
    for file in table_files(options.tables):
        table = read_table(file)
        kept, runs = read_lines(result_file(table, options.results)), in_order(table)
        done = [run for run in runs if run.name in kept]
        old = sum(bool(kept[run.name].differing(run)) for run in done)
        note = f", {old} of another config" if old else ""
        lines.append(f"{arguments_of(file):<40} {len(done):>4} of {len(runs)} runs{note}")
    return "\n".join(lines)


def render_file(file: Path, options: Namespace) -> None:
    """Write the tables in ``file`` anew, see ``render_into``.

    Raises:
        UserError: if that cannot be done.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    write_atomically(file, render_into(text, options.tables, options.results).encode())


def train_runs(runs: Sequence[RunSpec], table: Table, file: Path, options: Namespace, deadline: float) -> bool:
    """Train what is not finished, and keep the results.

    Args:
        runs: a run stands before the rounds on it.
        table: that they are of.
        file: the table's result file.
        options: the command line.
        deadline: the reading of time.monotonic() at which to stop.

    Returns:
        Whether all of them are finished.

    Raises:
        Diverged: when all the others are trained, if some did.
    """
    left: list[RunSpec] = []
    waiting, diverged = list(runs), []
    while waiting:
        left = []
        for run in waiting:
            if time.monotonic() >= deadline:
                return False
            parent = None if run.parent is None else options.runs / run.parent.name
            if parent is not None and RunDirectory(parent).read_results() is None:
                left.append(run)
                continue
            try:
                train_run(run, table, file, options, deadline)
            except RunInUse:
                left.append(run)
            except Diverged as error:
                diverged.append(run.name)
                print(f"{run.name}: {error}", file=sys.stderr)
            except TimeUp as stop:
                print(stop)
                return False
        if len(left) == len(waiting):
            names = ", ".join(run.name for run in left)
            print(f"left out, because another process has them, or the run that they go on from: {names}")
            break
        waiting = left
    if diverged:
        raise Diverged(f"without {', '.join(diverged)}, which diverged, the table has gaps")
    return not left


def train_run(run: RunSpec, table: Table, file: Path, options: Namespace, deadline: float) -> None:
    """Train a run to its end, unless it is there, and keep its results. Arguments as for ``train_runs``."""
    path = options.runs / run.name
    finished = RunDirectory(path).read_results() is not None
    config = run.config if run.parent is None else start_round(options.runs / run.parent.name, path, run.config)
    quiet = options.quiet or finished
    results = train(config, path, quiet=quiet, deadline=deadline, signals=stop_signals)
    kept = read_lines(file).get(run.name)
    if kept is None or kept.results != RunResult.model_validate(results):
        save_result(path, table, file)
    if options.quiet and not finished:
        print(f"{run.name}: {summarize(results)}", flush=True)
