"""Train MixMatch and the supervised baseline on the bundled digits and print both, as mean ± std over seeds.

    python3 benchmarks/digits.py                    # seeds 1 to 5, the README's table
    python3 benchmarks/digits.py --seeds 1          # what `make demo` runs
    python3 benchmarks/digits.py data.num_labeled=20

Run directories go to runs/digits-benchmark/; what is there already is not trained again.
"""

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mixmatch.config import load_config  # noqa: E402 - after the path is set
from mixmatch.errors import UserError  # noqa: E402
from mixmatch.train import Stopped, train  # noqa: E402


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-benchmark"), help="where the runs go")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    table = []
    try:
        for method in ("supervised", "mixmatch"):
            results = []
            for seed in options.seeds:
                overrides = [*options.overrides, f"method={method}", f"seed={seed}"]
                config = load_config(ROOT / "configs" / "digits.yml", overrides)
                results.append(train(config, options.runs / config.run_name()))
            table.append(row(method, results))
    except Stopped as stop:
        print(stop)
        return 128 + stop.signal
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    labels, steps = config.data.num_labeled, config.train.steps
    print(f"\ndigits, {labels} labels, {steps} steps, {len(options.seeds)} seeds: test accuracy, mean ± std\n")
    print("| method | test accuracy (%) | each seed | seconds a run |\n|---|---|---|---|")
    print("\n".join(table))
    print(f"\nThe curves: tensorboard --logdir {options.runs}")
    return 0


def row(method: str, results: list[dict]) -> str:
    """Return a method's line of the table."""
    accuracies = [result["test_accuracy"] for result in results]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    each = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
    seconds = statistics.mean(result["seconds"] for result in results)
    return f"| {method} | {statistics.mean(accuracies):.2f}{spread} | {each} | {seconds:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
