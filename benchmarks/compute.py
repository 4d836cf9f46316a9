"""Accuracy against compute: how little of it each recipe needs to come as far as another one.

    python3 benchmarks/compute.py compute --data cifar10-jpeg-16px --draw docs/compute.png

The runs are those of a table (``python3 -m reproduce``) whose rows are called "recipe, length": each is a set of
finished runs of that length, since a curve within a run misjudges rates that fall. Compute is passes over images, 1
forward and 2 backward, times the operations of the network for one.
"""

import importlib.util
import math
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from mixmatch.cli.common import Parser, run_command
from mixmatch.errors import UserError
from mixmatch.files import explain_os_errors
from reproduce.results import MISSING, accuracies, count_seeds, passes_of, read_lines, result_file, spread
from reproduce.tables import find_table, plan, read_table


class Point(NamedTuple):
    """The runs of a row."""

    label: str
    compute: float  # operations
    accuracies: list[float]  # percent, a number for each seed
    planned: int  # seeds that the table has

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return statistics.mean(self.accuracies)


def read_points(name: str, data: str | None, results: Path | None = None) -> dict[str, list[Point]]:
    """Return the points of each recipe of a table by its name, in the table's order, each recipe's by compute.

    Runs without results, or whose results do not tell their compute, are left out.

    Raises:
        UserError: if the table is none of this kind, or nothing is left of its first row.
    """
    table = read_table(find_table(name, data))
    kept = read_lines(result_file(table, results))
    recipes: dict[str, list[Point]] = {}
    for row, runs in zip(table.rows, plan(table), strict=True):
        recipe, comma, _ = row.label.rpartition(", ")
        if not comma:
            raise UserError(f"{table.file}: rows must be called 'recipe, length', got {row.label!r}")
        outcomes = {seed: kept[run.name].results for seed, run in runs.items() if run.name in kept}
        costs = {
            seed: (passes_of(runs[seed], kept) or 0) * (outcome.operations_per_pass or 0)
            for seed, outcome in outcomes.items()
        }
        known = {seed: value for seed, value in accuracies(outcomes, table).items() if costs[seed]}
        if known:
            cost = statistics.mean(costs[seed] for seed in known)
            recipes.setdefault(recipe, []).append(Point(row.label, cost, [*known.values()], len(runs)))
        elif row == table.rows[0]:
            raise UserError(
                f"{table.file}: no run of {row.label!r}, the reference, has results that tell its compute; "
                "train the table with python3 -m reproduce"
            )
    return {recipe: sorted(points, key=lambda point: point.compute) for recipe, points in recipes.items()}


def compute_to(accuracy: float, points: Sequence[Point]) -> float | None:
    """Return the compute at which a recipe reaches ``accuracy``, interpolated in its logarithm; None: it does not.

    At its shortest length at the latest: how much less would have done, these runs do not tell.
    """
    for i, point in enumerate(points):
        if point.mean < accuracy:
            continue
        if i == 0:
            return point.compute
        before = points[i - 1]
        logarithms = np.log([before.compute, point.compute])
        return float(np.exp(np.interp(accuracy, [before.mean, point.mean], logarithms)))
    return None


def render(recipes: dict[str, list[Point]], to: Sequence[float] | None) -> str:
    """Return two tables in Markdown: the points, and the compute of each recipe to each accuracy of ``to``.

    The first recipe is the reference: compute is told as a share of that of its longest runs, those of the first row of
    the table, and ``to`` are by default the accuracies that it reached.
    """
    reference = next(iter(recipes.values()))
    whole = reference[-1].compute
    lines = [
        "| runs | compute, 10^12 operations | of the reference's | accuracy (%) | seeds |",
        "|---|---|---|---|---|",
    ]
    for point in (point for points in recipes.values() for point in points):
        seeds = count_seeds(len(point.accuracies), point.planned)
        cost = f"{point.compute / 1e12:.3g} | {point.compute / whole:.3g}"
        lines.append(f"| {point.label} | {cost} | {spread(point.accuracies)} | {seeds} |")
    goals = to or [point.mean for point in reference]
    lines += ["", "Compute to an accuracy, of the reference's longest runs:", ""]
    lines += [f"| recipe | {' | '.join(f'{goal:.2f}%' for goal in goals)} |", "|---" * (len(goals) + 1) + "|"]
    for recipe, points in recipes.items():
        found = [compute_to(goal, points) for goal in goals]
        cells = [
            MISSING if cost is None else ("≤ " if cost == points[0].compute else "") + f"{cost / whole:.3g}"
            for cost in found
        ]
        lines.append(f"| {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(recipes: dict[str, list[Point]], file: Path) -> None:
    """Draw accuracy against compute, mean and std of each point, of the recipes of several lengths, to a PNG file.

    Raises:
        UserError: if matplotlib is missing, or the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--draw: needs matplotlib; pip install matplotlib")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    whole = next(iter(recipes.values()))[-1].compute
    for recipe, points in recipes.items():
        if len(points) == 1:
            continue
        deviations = [statistics.stdev(p.accuracies) if len(p.accuracies) > 1 else 0 for p in points]
        costs = [point.compute / whole for point in points]
        axes.errorbar(costs, [point.mean for point in points], deviations, marker="o", capsize=3, label=recipe)
    axes.set_xscale("log")
    axes.set_xlabel("compute, of the reference's longest runs")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    with explain_os_errors(file):
        figure.savefig(file, dpi=100, format="png")


def percent(text: str) -> float:
    """Return the number that a command line gives for an accuracy."""
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise ValueError
    return value


def make_parser() -> Parser:
    """Return the parser of the command line."""
    usage, description = "python3 benchmarks/compute.py TABLE [options]", __doc__ or ""
    parser = Parser(usage=usage, description=description)
    parser.add_argument("table", help="as for python3 -m reproduce")
    parser.add_argument("--data", help="as for python3 -m reproduce")
    parser.add_argument("--output", type=percent, nargs="+", metavar="PERCENT", help="accuracies; the first recipe's")
    parser.add_argument("--results", type=Path, help="the folder of result files")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="a PNG with the curves (needs matplotlib)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and draw the curves if asked to. Return the exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        recipes = read_points(options.table, options.data, options.results)
        print(render(recipes, options.to))
        if options.draw:
            draw(recipes, options.draw)

    return run_command(make_parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())
