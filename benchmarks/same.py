"""Train the same runs with this tree and with another commit, and compare their metrics to the last digit.

    python3 benchmarks/same.py 2f5f5b4 --photographs data/cifar10-jpeg

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
# Words of command lines, and metrics, in commits up to 2f5f5b4.
FORMER_WORDS = {"--run-dir": "--run", "--output-dir": "--to", "init_from=": "init="}
# F.cross_entropy and F.mse_loss round differently from the formulas that they replaced.
FORMER_LOSSES = """
import mixmatch.methods.mixmatch as mixmatch, mixmatch.methods.supervised as supervised

def soft_cross_entropy(logits, targets):
    return -(targets * logits.to(targets.dtype).log_softmax(dim=1)).sum(dim=1).mean()

def squared_error(logits, targets):
    return (logits.to(targets.dtype).softmax(dim=1) - targets).square().mean()

mixmatch.soft_cross_entropy = supervised.soft_cross_entropy = soft_cross_entropy
mixmatch.squared_error = squared_error
"""
FORMER_METRICS = {"most_guessed_share": "max_class_frequency", "guessed_classes": "effective_num_classes"}


def main() -> int:
    """Run the command and return its exit code: 0 if all metrics are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the other commit")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="CIFAR-10 (JPEG); left out if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--ignore", nargs="+", default=[], help="metrics whose definition has changed")
    parser.add_argument("--former-losses", action="store_true", help="use the loss formulas of 2f5f5b4 in this tree")
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
        (folder / "losses.py").write_text(FORMER_LOSSES if options.former_losses else "")
        ours = [
            [*command, "--import", str(folder / "losses.py")] for command in commands(folder, "this", images, options)
        ]
        # The two trees at the same time: a core each.
        workers = [start(other, commands(folder, "other", images, options)), start(ROOT, ours)]
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
    if not (tree / "mixmatch" / "cli").exists():
        for word, former in FORMER_WORDS.items():
            script = script.replace(word, former)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(script, shell=True, cwd=tree, env=environment, stdout=subprocess.DEVNULL)  # noqa: S602


def read_metrics(run: Path, ignored: list[str]) -> list[dict]:
    """Return the entries of metrics.jsonl by today's names, without times and what is ignored."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            FORMER_METRICS.get(key, key): value
            for key, value in entry.items()
            if "second" not in key and key not in ignored
        }
        for entry in entries
    ]


if __name__ == "__main__":
    sys.exit(main())
