"""Accuracy against compute: how little compute each recipe needs to reach an accuracy.

    python3 benchmarks/compute.py compute-cifar10-jpeg-16px --plot docs/compute.png

The rows of the table (``python3 -m reproduce``) are called "recipe, length": finished runs of each length, since the
curve within a run misjudges learning rates that decay. Compute is forward passes (a backward pass counts 2) times the
FLOPs of one.
"""

import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

from mixmatch.cli.common import Parser, run_command
from mixmatch.errors import UserError
from mixmatch.files import explain_os_errors
from mixmatch.markdown import MISSING, markdown_table, mean_std
from reproduce.render import count_seeds, forward_passes
from reproduce.results import read_records
from reproduce.tables import find_table, plan, read_table


class Point(NamedTuple):
    """The runs of a row."""

    label: str
    compute: float  # FLOPs
    accuracies: list[float]  # percent, by seed
    planned: int  # seeds of the row

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return statistics.mean(self.accuracies)


def read_points(name: str, file: Path | None = None) -> dict[str, list[Point]]:
    """Return the points of each recipe of a table, by compute; runs whose compute is unknown are left out.

    Raises:
        UserError: if the labels of rows do not have this form, or the first row has no results.
    """
    table = read_table(find_table(name))
    records = read_records(file or table.records_file)
    recipes: dict[str, list[Point]] = {}
    for row, runs in zip(table.rows, plan(table), strict=True):
        recipe, comma, _ = row.label.rpartition(", ")
        if not comma:
            raise UserError(f"{table.file}: labels must be 'recipe, length', got {row.label!r}")
        accuracies, costs = [], []
        for run in runs.values():
            passes, results = forward_passes(run, records), records[run.name].results if run.name in records else None
            if passes and results and results.flops_per_forward and results.test_accuracy is not None:
                accuracies.append(results.test_accuracy)
                costs.append(passes * results.flops_per_forward)
        if costs:
            recipes.setdefault(recipe, []).append(Point(row.label, statistics.mean(costs), accuracies, len(runs)))
        elif row == table.rows[0]:
            raise UserError(f"{table.file}: {row.label!r}, the reference, has no results; train it first")
    return {recipe: sorted(points, key=lambda point: point.compute) for recipe, points in recipes.items()}


def compute_to(accuracy: float, points: Sequence[Point]) -> float | None:
    """Return the compute at which a recipe reaches ``accuracy``, interpolated in its logarithm; None: it does not.

    It is at least that of the recipe's shortest runs.
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


def render(recipes: dict[str, list[Point]], goals: Sequence[float] | None) -> str:
    """Return two tables in Markdown: the points, and the compute of each recipe to each accuracy.

    The first recipe is the reference: compute is relative to its longest runs, and ``goals`` are by default the
    accuracies that it reaches.
    """
    reference = next(iter(recipes.values()))
    whole = reference[-1].compute
    rows = [
        [
            point.label,
            f"{point.compute / 1e12:.3g}",
            f"{point.compute / whole:.3g}",
            mean_std(point.accuracies),
            count_seeds(len(point.accuracies), point.planned),
        ]
        for points in recipes.values()
        for point in points
    ]
    goals = goals or [point.mean for point in reference]
    shares = []
    for recipe, points in recipes.items():
        found = [compute_to(goal, points) for goal in goals]
        cells = [
            MISSING if cost is None else ("≤ " if cost == points[0].compute else "") + f"{cost / whole:.3g}"
            for cost in found
        ]
        shares.append([recipe, *cells])
    return "\n".join(
        [
            markdown_table(["runs", "TFLOP", "relative to the reference", "accuracy (%)", "seeds"], rows),
            "\nCompute to reach an accuracy, relative to the longest runs of the reference:\n",
            markdown_table(["recipe", *(f"{goal:.2f}%" for goal in goals)], shares),
        ]
    )


def plot(recipes: dict[str, list[Point]], file: Path) -> None:
    """Plot accuracy against compute, mean and standard deviation, of the recipes of several lengths, to a PNG file."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    whole = next(iter(recipes.values()))[-1].compute
    for recipe, points in recipes.items():
        if len(points) == 1:
            continue
        deviations = [statistics.stdev(p.accuracies) if len(p.accuracies) > 1 else 0 for p in points]
        costs = [point.compute / whole for point in points]
        axes.errorbar(costs, [point.mean for point in points], deviations, marker="o", capsize=3, label=recipe)
    axes.set_xscale("log")
    axes.set_xlabel("compute, relative to the longest runs of the reference")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    with explain_os_errors(file):
        figure.savefig(file, dpi=100, format="png")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(usage="python3 benchmarks/compute.py TABLE [options]", description=__doc__)
    parser.add_argument("table", help="as for python3 -m reproduce")
    parser.add_argument("--goals", type=float, nargs="+", metavar="PERCENT", help="default: those of the reference")
    parser.add_argument("--results", type=Path, metavar="FILE", help="records of runs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG file for the curves")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see ``run_command``."""

    def body(options: Namespace) -> None:
        recipes = read_points(options.table, options.results)
        print(render(recipes, options.goals))
        if options.plot:
            plot(recipes, options.plot)

    return run_command(make_parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())
