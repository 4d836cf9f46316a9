"""Train the runs of a table of results, and print the table.

    python3 -m reproduce --list                     # list the tables, and how many of their runs have results
    python3 -m reproduce labels-digits              # train the runs that are not finished here, print the table
    python3 -m reproduce labels-digits --minutes 9  # stop after 9 minutes; the same command continues
    python3 -m reproduce labels-digits --jobs 4     # four runs at a time, each with its share of the CPU cores or GPUs
    python3 -m reproduce --render README.md         # render the tables in a file again

Runs are ordinary run directories in runs/, trained by seed, then by row.
"""

import math
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mixmatch.cli.common import Parser, run_command
from mixmatch.errors import Diverged, UserError
from mixmatch.files import write_atomically
from reproduce.render import render, render_into, runs_csv
from reproduce.results import read_records
from reproduce.tables import TABLES, Table, find_table, read_table, runs_in_order
from reproduce.train import train_in_parallel, train_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        if options.table and (options.list or options.render):
            raise UserError("--list and --render take no TABLE")
        if options.list:
            print(list_tables(options))
        elif options.render is not None:
            try:
                text = options.render.read_bytes().decode()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{options.render}: cannot be read ({error}); give a Markdown file") from None
            text = render_into(text, options.tables, options.results)
            write_atomically(options.render, text.encode())
        elif options.table is not None:
            reproduce(options)
        else:
            raise UserError("TABLE: missing; --list lists the tables")

    return run_command(make_parser, arguments, body)


def make_parser() -> Parser:
    """Return the parser of the command line."""
    usage = "python3 -m reproduce [TABLE | --list | --render FILE] [options]"
    parser = Parser(usage=usage, description=__doc__)
    parser.add_argument("table", nargs="?", help="name of a table, or a table file of your own (.yml)")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--list", action="store_true", help="list the tables")
    alone.add_argument("--render", type=Path, metavar="FILE", help="render the tables in a Markdown file again")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of the table's seeds (default: all)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, with a checkpoint")
    parser.add_argument("--missing", action="store_true", help="train only runs that have no record yet")
    parser.add_argument("--run", metavar="NAME", help="train only this run, and print no table")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="train N runs at a time (default: 1)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each run that has a record")
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
    if not options.minutes > 0:
        raise UserError("--minutes: must be above 0")
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
    if options.run is not None:
        runs = [run for run in runs if run.name == options.run]
        if not runs:
            raise UserError(f"--run: {options.run} is no run of this table that is to be trained")
    if options.jobs < 1:
        raise UserError("--jobs: must be at least 1")
    try:
        complete = (train_in_parallel if options.jobs > 1 else train_runs)(runs, options, deadline)
    except Diverged:
        show(table, options)
        raise
    show(table, options)
    if options.run is None:
        print("complete" if complete else "not complete; the same command continues")
        print(f"curves: tensorboard --logdir {shlex.quote(str(options.runs))}")


def show(table: Table, options: Namespace) -> None:
    """Print the table and write its CSV file, unless a single run was asked for."""
    if options.run is not None:
        return
    print(f"\n{render(table, options.results)}\n")
    if options.csv is not None:
        write_atomically(options.csv, runs_csv(table, options.results).encode())


def list_tables(options: Namespace) -> str:
    """Return a line per table: its name, and how many of its runs have records, of the table's config or another."""
    lines = []
    for file in sorted(options.tables.glob("*.yml")):
        try:
            table = read_table(file)
            runs = runs_in_order(table)
        except UserError as error:  # such as a package that it needs
            lines.append(f"{file.stem:<32} {error}")
            continue
        records = read_records(options.results or table.records_file)
        done = [run for run in runs if run.name in records]
        outdated = sum(bool(run.differing_keys(records[run.name].config)) for run in done)
        note = f", {outdated} with another config" if outdated else ""
        lines.append(f"{table.name:<32} {len(done):>4} of {len(runs)} runs{note}")
    return "\n".join(lines)
