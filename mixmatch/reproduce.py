"""Reproduce a table of results with one command: train the runs that it is made of, and print it.

    python3 -m mixmatch.reproduce --list                             # the tables, and how much of each is there
    python3 -m mixmatch.reproduce labels --data digits               # train what is not trained yet, print the table
    python3 -m mixmatch.reproduce labels --data digits --minutes 9   # for so long; the same command goes on
    python3 -m mixmatch.reproduce --render README.md                 # write the tables in a file anew, training nothing

Runs are ordinary run directories under runs/, seed 1 of every row first. To train several at once, start the command
several times: each takes the runs that no other has.
"""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixmatch.command import Parser, run_command
from mixmatch.errors import Diverged, InUse, TimeUp, UserError
from mixmatch.files import write_atomically
from mixmatch.parcel import pack, runs_in, unpack
from mixmatch.rounds import start_round
from mixmatch.run import RunDirectory
from mixmatch.tables import (
    RESULTS,
    TABLES,
    Planned,
    Table,
    arguments_of,
    load_result,
    plan,
    read_table,
    render,
    render_into,
    save_result,
    table_files,
)
from mixmatch.train import summarise, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body() -> None:
        options = make_parser().parse_args(arguments)
        if (options.list or options.render) and (options.table or options.pack or options.unpack):
            raise UserError("--list and --render train nothing: give neither a table nor --pack or --unpack with them")
        if options.list:
            print(list_tables(options.results))
        elif options.render is not None:
            render_file(options.render, options.results)
        elif options.table is not None:
            reproduce(find_table(options.table, options.data), options)
        else:
            raise UserError("TABLE: none is given; --list lists them")

    return run_command(body)


def make_parser() -> Parser:
    """Return the parser of the command line."""
    usage = "python3 -m mixmatch.reproduce [TABLE [--data NAME] | --list | --render FILE] [options]"
    parser = Parser(usage, __doc__ or "")
    parser.add_argument("table", nargs="?", help="labels, pseudo, ablation, demo, or a table file (.yml) of yours")
    parser.add_argument("--data", metavar="NAME", help="of which data (default: cifar10, or the only one there is)")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--list", action="store_true", help="list the tables, and train nothing")
    alone.add_argument("--render", type=Path, metavar="FILE", help="write the tables in FILE anew, train nothing")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these of the table's seeds (default: all)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, with a checkpoint")
    parser.add_argument("--missing", action="store_true", help="train only runs that have no result file yet")
    parser.add_argument("--quiet", action="store_true", help="print a line for each run only")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the run directories (default: runs)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="result files (default: the committed ones)")
    parser.add_argument("--unpack", type=Path, metavar="FOLDER", help="first take the runs that --pack put there")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="in the end put there what the runs need to go on")
    return parser


def reproduce(table: Table, options: Namespace) -> None:
    """Train a table's runs as the command line says, and print it.

    Raises:
        UserError: if something in the options does not work; no parcel has lost a run then.
        Diverged: when all the others are trained, if a run did.
    """
    deadline = time.monotonic() + 60 * options.minutes
    packed = {run.name for run in in_order(table)}
    if options.seeds is not None:
        if not {*options.seeds} <= {*table.seeds}:
            raise UserError(f"--seeds: the table's are {', '.join(map(str, table.seeds))}")
        table = table.model_copy(update={"seeds": options.seeds})
    if options.unpack is not None:
        taken = unpack(options.unpack, options.runs)
        packed |= {*runs_in(options.unpack)}
        print(f"taken from {options.unpack}: {', '.join(taken) or 'nothing, all of it is here'}")
    if options.pack is not None:
        lost = [name for name in runs_in(options.pack) if name not in packed or not (options.runs / name).exists()]
        if lost:
            raise UserError(
                f"{options.pack}: would lose {', '.join(lost)}; add --unpack with that folder, or pack elsewhere"
            )

    runs = list(in_order(table))
    kept = {run.name: load_result(run, options.results) for run in runs}  # all of them fit, or it is said now
    if options.missing:
        missing = [run for run in runs if kept[run.name] is None]
        parents = {run.parent.name for run in missing if run.parent is not None}
        runs = [run for run in runs if run in missing or run.name in parents]
    try:
        complete = train_runs(runs, options.runs, options.results, deadline, options.quiet)
    finally:
        if options.pack is not None:
            begun = [path for name in sorted(packed) if (path := options.runs / name).exists()]
            size = pack(begun, options.pack)
            print(f"{len(begun)} runs, {size / 1e6:.1f} MB, packed to {options.pack}")
    print(f"\n{render(table, options.results)}\n")
    print("complete" if complete else "not complete; the same command goes on")
    print(f"curves: tensorboard --logdir {options.runs}")


def find_table(name: str, data: str | None) -> Table:
    """Return the table ``name`` for ``data``, or that of a file.

    Raises:
        UserError: if there is none.
    """
    if name.endswith((".yml", ".yaml")):
        return read_table(Path(name))
    named = [file for file in table_files() if file.stem.startswith(f"{name}-")]
    file = named[0] if data is None and len(named) == 1 else TABLES / f"{name}-{data or 'cifar10'}.yml"
    if not file.exists():
        raise UserError(f"{name} --data {data}: is no table; there are {', '.join(map(arguments_of, table_files()))}")
    return read_table(file)


def list_tables(results: Path) -> str:
    """Return a line for each table: its command, and how many of its runs have a result file."""
    lines = []
    for file in table_files():
        runs = list(in_order(read_table(file)))
        done = sum(load_result(run, results) is not None for run in runs)
        lines.append(f"{arguments_of(file):<40} {done:>4} of {len(runs)} result files")
    return "\n".join(lines)


def render_file(file: Path, results: Path) -> None:
    """Write the tables in ``file`` anew, see ``render_into``.

    Raises:
        UserError: if that cannot be done.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    write_atomically(file, render_into(text, results).encode())


def in_order(table: Table) -> Iterator[Planned]:
    """Yield every run that a table needs once: by seed, then by row, and a run before the rounds on it."""
    seen = set()
    rows = plan(table)
    for seed in table.seeds:
        for row in rows:
            for run in (row[seed].parent, row[seed]):
                if run is not None and run.name not in seen:
                    seen.add(run.name)
                    yield run


def train_runs(runs: Sequence[Planned], root: Path, results: Path, deadline: float, quiet: bool) -> bool:
    """Train what is not finished, and keep the results.

    Args:
        runs: a run stands before the rounds on it.
        root: the folder of run directories.
        results: the folder of result files.
        deadline: the reading of time.monotonic() at which to stop.
        quiet: print a line for each run only.

    Returns:
        Whether all of them are finished.

    Raises:
        Diverged: when all the others are trained, if some did.
    """
    left: list[Planned] = []
    waiting, diverged = list(runs), []
    while waiting:
        left = []
        for run in waiting:
            if time.monotonic() >= deadline:
                return False
            parent = None if run.parent is None else root / run.parent.name
            if parent is not None and RunDirectory(parent).read_results() is None:
                left.append(run)
                continue
            try:
                train_run(run, root, results, deadline, quiet)
            except InUse:
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


def train_run(run: Planned, root: Path, results: Path, deadline: float, quiet: bool) -> None:
    """Train a run to its end, unless it is there, and keep its results. Arguments as for ``train_runs``."""
    path = root / run.name
    finished = RunDirectory(path).read_results() is not None
    config = run.config if run.parent is None else start_round(root / run.parent.name, path, run.config)
    values = train(config, path, quiet=quiet or finished, deadline=deadline)
    kept = load_result(run, results)
    if kept is None or kept["results"] != values:
        save_result(path, results)
    if quiet and not finished:
        print(f"{run.name}: {summarise(values)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
