"""Train the same runs with this tree and with another commit, and compare their metrics to the last digit.

    python3 benchmarks/same.py 0503f68 --photographs data/cifar10-jpeg

Digits, and photographs at 16x16, in float32: MixMatch and supervised with three seeds, and a pseudo-label stage. The
two may sample initial weights differently: all runs on the same images start from the same weights, which the other
commit has trained for one step. Prints whether every line of metrics.jsonl is the same, apart from times.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["device=cpu", "train.precision=float32", "train.compile=false"]
STAGE = ["select=top", "fraction=0.5", "refresh_every=150", "steps=400"]


def main() -> int:
    """Run the command and return its exit code: 0 if all metrics are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the other commit")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="CIFAR-10 (JPEG); left out if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--ignore", nargs="+", default=[], help="metrics whose definition has changed")
    options = parser.parse_args()
    images = {"digits": ["--config", "digits"]}
    if options.photographs:
        root = f"data.root={options.photographs.resolve()}"
        images["photographs"] = ["--config", "cifar10-jpeg-16px", root]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = folder / "checkout"
        subprocess.run(["git", "clone", "--quiet", ROOT, other], check=True)
        subprocess.run(["git", "-C", other, "checkout", "--quiet", options.commit], check=True)
        first = [main_command(folder / f"first-{key}", [*config, "train.steps=1"]) for key, config in images.items()]
        codes = [start(other, first).wait()]
        # The two trees at the same time: a core each.
        trees = {"other": other, "this": ROOT}
        workers = [start(tree, commands(folder, name, images, options)) for name, tree in trees.items()]
        codes += [worker.wait() for worker in workers]
        if any(codes):
            return 2
        equal = True
        for path in sorted((folder / "other").iterdir()):
            a, b = (read_metrics(run, options.ignore) for run in (path, folder / "this" / path.name))
            equal &= a == b
            print(f"{path.name}: {len(a)} evaluations, {'identical' if a == b else 'DIFFERENT'}")
    return 0 if equal else 1


def commands(folder: Path, tree: str, images: dict[str, list[str]], options: argparse.Namespace) -> list[list[str]]:
    """Return the commands that train all runs of a tree."""
    result = []
    for key, config in images.items():
        weights = f"init_from={folder / f'first-{key}' / 'model.safetensors'}"
        for seed in options.seeds:
            for method in ("mixmatch", "supervised"):
                settings = [f"seed={seed}", f"method={method}", f"train.steps={options.steps}", weights]
                result.append(main_command(folder / tree / f"{key}-{method}-seed{seed}", [*config, *settings]))
        parent = folder / tree / f"{key}-mixmatch-seed{options.seeds[0]}"
        stage = ["pseudo_label.py", "--run-dir", str(parent), "--output-dir", f"{parent}-stage"]
        result.append([*stage, *(f"pseudo_label.{setting}" for setting in STAGE)])
    return result


def main_command(path: Path, settings: list[str]) -> list[str]:
    """Return the arguments that train a run."""
    return ["main.py", "--run-dir", str(path), *settings, *SETTINGS]


def start(tree: Path, commands: list[list[str]]) -> subprocess.Popen:
    """Run commands in a tree, one after the other."""
    script = " && ".join(shlex.join([sys.executable, *command]) for command in commands)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(script, shell=True, cwd=tree, env=environment, stdout=subprocess.DEVNULL)  # noqa: S602


def read_metrics(run: Path, ignored: list[str]) -> list[dict]:
    """Return the entries of metrics.jsonl, without times and what is ignored."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if "second" not in k and k not in ignored} for entry in entries]


if __name__ == "__main__":
    sys.exit(main())
