"""Rounds of pseudo-labels against the control: the same checkpoint trained on as long with nothing selected.

    python3 benchmarks/pseudo_labels.py                    # digits, 20 labels, seeds 1 to 20: the README's table
    python3 benchmarks/pseudo_labels.py --seeds 1 2 3 --config configs/cifar10-4000.yml

For every seed a run is trained, and from its last checkpoint a round with each rule. Run directories go to --runs;
what is there already is not trained again.
"""

import json
import statistics
import sys
from pathlib import Path

from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mixmatch.command import Parser, run_command  # noqa: E402 - after the path is set
from mixmatch.config import load_config, override  # noqa: E402
from mixmatch.rounds import round_path, start_round  # noqa: E402
from mixmatch.train import train  # noqa: E402

CONTROL = "none"
RULES = {
    CONTROL: ["select=none"],
    "threshold 0.95": ["select=threshold", "threshold=0.95"],
    "threshold 0.99": ["select=threshold", "threshold=0.99"],
    "top 10%": ["select=top", "fraction=0.1"],
    "top 50%": ["select=top", "fraction=0.5"],
    "balanced 50%": ["select=balanced", "fraction=0.5"],
    "balanced 100%": ["select=balanced", "fraction=1.0"],
    "balanced 100%, strong views": ["select=balanced", "fraction=1.0", "strong_augmentation=true"],
}
DIGITS = ["data.num_labeled=20", "pseudo_label.steps=400"]


def main() -> int:
    """Run the command and return its exit code."""
    return run_command(compare)


def compare() -> None:
    """Train what is not trained yet, and print the table."""
    usage = "python3 benchmarks/pseudo_labels.py [--config FILE] [--seeds N ...] [--runs DIRECTORY] [key=value ...]"
    parser = Parser(usage, __doc__)
    parser.add_argument("--config", type=Path, help="of the runs (default: digits with 20 labels)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 21)))
    parser.add_argument("--runs", type=Path, default=Path("runs/pseudo-label-benchmark"), help="where the runs go")
    options = parser.parse_intermixed_args()
    defaults = [] if options.config else DIGITS
    results: dict[str, list[dict]] = {rule: [] for rule in RULES}
    for seed in options.seeds:
        config = load_config(
            options.config or ROOT / "configs" / "digits.yml", [*defaults, *options.overrides, f"seed={seed}"]
        )
        parent = options.runs / config.run_name()
        train(config, parent)
        for rule, settings in RULES.items():
            of_round = override(config, [f"pseudo_label.{setting}" for setting in settings])
            path = round_path(parent, of_round.pseudo_label)
            train(start_round(parent, path, of_round), path)
            results[rule].append(json.loads((path / "results.json").read_text()))
    print_table(results, f"{config.data.dataset}, {config.data.num_labeled} labels, {len(options.seeds)} seeds")


def print_table(results: dict[str, list[dict]], title: str) -> None:
    """Print a line for each rule.

    Args:
        results: for each rule the results of every seed, in the same order.
        title: what the table is of.
    """
    steps = results[CONTROL][0]["steps"] - results[CONTROL][0]["pseudo_label"]["start"]
    before = [result["pseudo_label"]["before"]["test_accuracy"] for result in results[CONTROL]]
    control = [result["test_accuracy"] for result in results[CONTROL]]
    print(f"\n{title}: test accuracy after {steps} more steps (before: {spread(before)})\n")
    print("| rule | test accuracy (%) | gain over the control, 95% interval | coverage (%) | precision (%) |")
    print("|---|---|---|---|---|")
    for rule, entries in results.items():
        accuracy = [entry["test_accuracy"] for entry in entries]
        gain, last = "-", [entry["pseudo_label"]["selections"][-1] for entry in entries]
        coverage = precision = "-"
        if rule != CONTROL:
            gain = interval([a - b for a, b in zip(accuracy, control, strict=True)])
            coverage = f"{statistics.mean(entry['coverage'] for entry in last):.1f}"
            known = [entry["precision"] for entry in last if entry["precision"] is not None]
            precision = f"{statistics.mean(known):.2f}" if known else "-"
        name = "none (control)" if rule == CONTROL else rule
        print(f"| {name} | {spread(accuracy)} | {gain} | {coverage} | {precision} |")


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def interval(gains: list[float]) -> str:
    """Return the mean of paired differences with its 95% confidence interval (Student's t)."""
    mean = statistics.mean(gains)
    if len(gains) < 2:
        return f"{mean:+.2f}"
    half = student.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


if __name__ == "__main__":
    sys.exit(main())
