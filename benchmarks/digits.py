"""Train MixMatch and the supervised baseline on the bundled digits and print both, as mean ± std over seeds.

    python3 benchmarks/digits.py                    # seeds 1 to 5, the README's table
    python3 benchmarks/digits.py --seeds 1          # what `make demo` runs
    python3 benchmarks/digits.py data.num_labeled=20

Run directories go to runs/digits-benchmark/; what is there already is not trained again.
"""

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mixmatch.command import Parser, run_command  # noqa: E402 - after the path is set
from mixmatch.config import load_config  # noqa: E402
from mixmatch.train import train  # noqa: E402


def main() -> int:
    """Run the command and return its exit code."""
    return run_command(compare)


def compare() -> None:
    """Train what is not trained yet, and print the table."""
    parser = Parser("python3 benchmarks/digits.py [--seeds N ...] [--runs DIRECTORY] [key=value ...]", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-benchmark"), help="where the runs go")
    options = parser.parse_intermixed_args()
    table = []
    for method in ("supervised", "mixmatch"):
        results = []
        for seed in options.seeds:
            overrides = [*options.overrides, f"method={method}", f"seed={seed}"]
            config = load_config(ROOT / "configs" / "digits.yml", overrides)
            results.append(train(config, options.runs / config.run_name()))
        table.append(row(method, results))
    labels, steps = config.data.num_labeled, config.train.steps
    print(f"\ndigits, {labels} labels, {steps} steps, {len(options.seeds)} seeds: test accuracy, mean ± std\n")
    print("| method | test accuracy (%) | each seed | seconds a run |\n|---|---|---|---|")
    print("\n".join(table))
    print(f"\nThe curves: tensorboard --logdir {options.runs}")


def row(method: str, results: list[dict]) -> str:
    """Return a method's line of the table."""
    accuracies = [result["test_accuracy"] for result in results]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    each = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
    seconds = statistics.mean(result["seconds"] for result in results)
    return f"| {method} | {statistics.mean(accuracies):.2f}{spread} | {each} | {seconds:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
