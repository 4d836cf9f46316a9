"""Train the runs of a table of results, and print the table.

    python3 -m reproduce --list                     # list the tables, and how many of their runs have results
    python3 -m reproduce labels-digits              # train the runs that are not finished here, print the table
    python3 -m reproduce labels-digits --minutes 9  # stop after 9 minutes; the same command continues
    python3 -m reproduce --render README.md         # render the tables in a file again

Runs are ordinary run directories in runs/, trained by seed, then by row. To train several at once, start the command
several times: each takes runs that no other process is training.
"""

import logging
import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, run_command
from mixmatch.errors import Diverged, RunInUse, TimeUp, UserError
from mixmatch.files import write_atomically
from mixmatch.output import log
from mixmatch.pseudo_labels.start import start_stage
from mixmatch.runs.directory import RunDirectory
from mixmatch.training.loop import train
from mixmatch.training.results import summarize
from reproduce.render import render, render_into
from reproduce.results import read_records, save_record
from reproduce.tables import TABLES, RunSpec, find_table, read_table, runs_in_order


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        if options.table and (options.list or options.render):
            raise UserError("--list and --render take no TABLE")
        if options.list:
            print(list_tables(options))
        elif options.render is not None:
            text = render_into(options.render.read_text(encoding="utf-8"), options.tables, options.results)
            write_atomically(options.render, text.encode())
        elif options.table is not None:
            reproduce(options)
        else:
            raise UserError("TABLE: missing; --list lists the tables")

    return run_command(make_parser, arguments, body)


def make_parser() -> Parser:
    """Return the parser of the command line."""
    usage = "python3 -m reproduce [TABLE | --list | --render FILE] [options]"
    parser = Parser(usage, __doc__ or "")
    parser.add_argument("table", nargs="?", help="name of a table, or a table file of your own (.yml)")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--list", action="store_true", help="list the tables")
    alone.add_argument("--render", type=Path, metavar="FILE", help="render the tables in a Markdown file again")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of the table's seeds (default: all)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, with a checkpoint")
    parser.add_argument("--missing", action="store_true", help="train only runs that have no record yet")
    parser.add_argument("--quiet", action="store_true", help="print one line per run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run directories (default: runs)")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of table files (default: this project's)")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="records of runs (default: this project's, or next to your table)"
    )
    return parser


def reproduce(options: Namespace) -> None:
    """Train the runs of a table, and print the table.

    Raises:
        UserError: if an option is invalid.
        Diverged: after all other runs are trained, if a run diverged.
    """
    deadline = time.monotonic() + 60 * options.minutes
    table = read_table(find_table(options.table, options.tables))
    options.results = options.results or table.records_file
    if options.seeds is not None:
        if not {*options.seeds} <= {*table.seeds}:
            raise UserError(f"--seeds: must be among {', '.join(map(str, table.seeds))}")
        table = table.model_copy(update={"seeds": options.seeds})
    runs, records = runs_in_order(table), read_records(options.results)
    if options.missing:
        missing = [run for run in runs if run.name not in records]
        runs = [run for run in runs if run in missing or run in [stage.parent for stage in missing]]
    complete = train_runs(runs, options, deadline)
    print(f"\n{render(table, options.results)}\n")
    print("complete" if complete else "not complete; the same command continues")
    print(f"curves: tensorboard --logdir {options.runs}")


def train_runs(runs: Sequence[RunSpec], options: Namespace, deadline: float) -> bool:
    """Train runs that are not finished, and save their records.

    Args:
        runs: each after the run that it continues.
        options: of the command line.
        deadline: the value of time.monotonic() at which to stop.

    Returns:
        Whether all runs are finished.

    Raises:
        Diverged: after all other runs are trained, if some diverged.
    """
    skipped, diverged = [], []
    for run in runs:
        if time.monotonic() >= deadline:
            return False
        try:
            train_and_save(run, options, deadline)
        except RunInUse:
            skipped.append(run.name)
        except TimeUp as stop:
            print(stop)
            return False
        except Diverged as error:
            diverged.append(run.name)
            print(f"{run.name}: {error}", file=sys.stderr)
    if skipped:
        print(f"skipped, because they or the runs that they continue are in use or diverged: {', '.join(skipped)}")
    if diverged:
        raise Diverged(f"{len(diverged)} of {len(runs)} runs diverged: {', '.join(diverged)}")
    return not skipped


def train_and_save(run: RunSpec, options: Namespace, deadline: float) -> None:
    """Train a run to its end, unless it is finished, and save its record.

    Raises:
        RunInUse: if another process trains the run, or it continues a run that is not finished.
    """
    path, config, start = options.runs / run.name, run.config, None
    finished = RunDirectory(path).read_results() is not None
    if run.parent is not None:
        parent = options.runs / run.parent.name
        if RunDirectory(parent).read_results() is None:
            raise RunInUse(f"{parent}: not finished")
        config, start = start_stage(parent, path, config)
    quiet = options.quiet or finished
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    results = train(config, path, quiet=quiet, deadline=deadline, start=start)
    record = read_records(options.results).get(run.name)
    if record is None or record.results != results:
        save_record(path, results, options.results)
    if options.quiet and not finished:
        print(f"{run.name}: {summarize(results)}", flush=True)


def list_tables(options: Namespace) -> str:
    """Return a line per table: its name, and how many of its runs have records, of the table's config or another."""
    lines = []
    for file in sorted(options.tables.glob("*.yml")):
        table = read_table(file)
        records, runs = read_records(options.results or table.records_file), runs_in_order(table)
        done = [run for run in runs if run.name in records]
        outdated = sum(bool(run.differing_keys(records[run.name].config)) for run in done)
        note = f", {outdated} with another config" if outdated else ""
        lines.append(f"{table.name:<32} {len(done):>4} of {len(runs)} runs{note}")
    return "\n".join(lines)
