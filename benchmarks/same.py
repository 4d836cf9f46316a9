"""Train the same runs with this code and with that of another commit, and compare them to the last digit.

    python3 benchmarks/same.py 5bae388

Digits by both methods, three seeds each, and a round of pseudo-labels; defaults that have changed are spelled out.
Prints whether every line of metrics.jsonl is the same, timings apart; the exit code is 0 if all are.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["data.labeled_as_unlabeled=true", "device=cpu", "train.precision=float32", "train.compile=false"]
ROUND = ["select=balanced", "fraction=1.0", "strong_augmentation=true", "refresh_every=150"]


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="to compare the working tree with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--ignore", nargs="+", default=[], help="entries whose meaning has changed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder, "checkout")
        subprocess.run(["git", "clone", "--quiet", ROOT, there], check=True)
        subprocess.run(["git", "-C", there, "checkout", "--quiet", options.commit], check=True)
        runs = Path(folder, "runs")
        # The two checkouts side by side: a core each.
        workers = [start(checkout, runs / name, options) for name, checkout in (("theirs", there), ("ours", ROOT))]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            return 2
        equal = True
        for theirs in sorted((runs / "theirs").iterdir()):
            a, b = (lines(path / "metrics.jsonl", options.ignore) for path in (theirs, runs / "ours" / theirs.name))
            equal &= a == b
            print(f"{theirs.name}: {len(a)} evaluations, {'identical' if a == b else 'DIFFERENT'}")
    return 0 if equal else 1


def start(checkout: Path, runs: Path, options: argparse.Namespace) -> subprocess.Popen:
    """Train all runs with one checkout, one after the other."""
    python, commands = sys.executable, []
    settings = [*SETTINGS, f"train.steps={options.steps}"]
    for seed in options.seeds:
        for method in ("mixmatch", "supervised"):
            run = ["--run-dir", str(runs / f"{method}-seed{seed}"), f"seed={seed}", f"method={method}"]
            commands.append([python, "main.py", "--config", "configs/digits.yml", *run, *settings])
    parent, to = runs / f"mixmatch-seed{options.seeds[0]}", runs / "round"
    keys = [f"pseudo_label.{setting}" for setting in ROUND]
    commands.append([python, "pseudo_label.py", "--run-dir", str(parent), "--output-dir", str(to), *keys])
    script = " && ".join(" ".join(command) for command in commands)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(script, shell=True, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)  # noqa: S602


def lines(file: Path, ignored: list[str]) -> list[dict]:
    """Return the entries of a metrics.jsonl without timings and what is ignored."""
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        {key: value for key, value in entry.items() if "second" not in key and key not in ignored} for entry in entries
    ]


if __name__ == "__main__":
    sys.exit(main())
