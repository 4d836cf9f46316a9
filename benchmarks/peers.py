r"""Train by another implementation's own loop, on the images and the split of a run of ours.

    git clone https://github.com/YU1ut/MixMatch-pytorch ../MixMatch-pytorch
    pip install progress tensorboardX          # which it imports
    python3 benchmarks/peers.py ../MixMatch-pytorch runs/cifar10-jpeg-250-seed1 --steps 600 --eval-every 50

Works with YU1ut/MixMatch-pytorch and kekmodel/FixMatch-pytorch, in one process on a CPU, without data loader workers.
Their code and default settings stay as they are, but for what keeps them from running on a CPU or with today's
packages. Their schedules span ``--steps``. After each ``--eval-every`` steps a line of JSON has the CPU time of
training, without evaluations, and the test accuracy of their EMA network.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mixmatch.data import ImageData, load_data
from mixmatch.data.split import read_split
from mixmatch.data.stored_images import to_memory
from mixmatch.runs.directory import RunDirectory

Evaluation = Callable[..., tuple[float, float]]  # mean loss, accuracy in percent
Transform = Callable[[object], object]

CPU = torch.device("cpu")
FIXES = {
    r"(\w+_iter)\.next\(\)": r"next(\1)",
    r"correct\[:k\]\.view\(": "correct[:k].reshape(",
    r"\bnp\.int\b": "int",
    r"\bmodel\.cuda\(\)": "model",
    r"torch\.device\('cuda', args\.gpu_id\)": "torch.device('cpu')",
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("run", type=Path, help="a run of ours on 32x32 images, begun or finished")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--eval-every", type=int, required=True, metavar="STEPS")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    run = RunDirectory(options.run)
    data = load_data(run.read_config().data, CPU)
    split = read_split(run.split_file, data)
    torchvision.datasets.CIFAR10 = make_dataset(data)

    checkout, out = Path(tempfile.mkdtemp(), "checkout"), tempfile.mkdtemp()
    shutil.copytree(options.checkout, checkout, ignore=shutil.ignore_patterns(".git"))
    for file in checkout.rglob("*.py"):
        text = file.read_text()
        for pattern, replacement in FIXES.items():
            text = re.sub(pattern, replacement, text)
        file.write_text(text)
    sys.path.insert(0, str(checkout))
    torch.manual_seed(options.seed)
    every, seed = str(options.eval_every), str(options.seed)
    labeled, unlabeled, validation = (np.array(part) for part in (split.labeled, split.unlabeled, split.validation))
    if (checkout / "dataset" / "cifar.py").exists():  # FixMatch, whose labeled images are among the unlabeled
        sys.argv = ["train.py", "--num-labeled", str(len(labeled)), "--total-steps", str(options.steps), "--seed", seed]
        sys.argv += ["--eval-step", every, "--num-workers", "0", "--no-progress", "--out", out]
        import train
        from dataset import cifar

        cifar.x_u_split = lambda args, labels: (labeled, np.union1d(labeled, unlabeled))
        train.test = report(train.test, options.eval_every, lambda args, *_: True)
    else:
        epochs = str(options.steps // options.eval_every)
        sys.argv = ["train.py", "--n-labeled", str(len(labeled)), "--epochs", epochs, "--manualSeed", seed]
        sys.argv += ["--train-iteration", every, "--out", out]
        import train
        from dataset import cifar10

        cifar10.train_val_split = lambda labels, count: (labeled, unlabeled, validation)
        train.validate = report(train.validate, options.eval_every, lambda *_, mode: mode == "Test Stats ")
    train.main()


def make_dataset(data: ImageData) -> type:
    """Return a class with our images and the interface of torchvision's CIFAR10."""
    assert data.test_images is not None and data.test_labels is not None
    pixels = {True: to_memory(data.images, CPU).numpy(), False: to_memory(data.test_images, CPU).numpy()}
    labels = {True: data.labels.tolist(), False: data.test_labels.tolist()}

    class Images(torchvision.datasets.CIFAR10):
        def __init__(
            self,
            root: str,
            train: bool = True,
            transform: Transform | None = None,
            target_transform: Transform | None = None,
            download: bool = False,
        ) -> None:
            self.data, self.targets = pixels[train], labels[train]
            self.transform, self.target_transform = transform, target_transform

    return Images


def report(evaluate: Evaluation, steps: int, is_test: Callable[..., bool]) -> Evaluation:
    """Wrap an evaluation that returns loss and accuracy, and print the accuracy on test images."""
    start, evaluations, number = time.process_time(), 0.0, 0

    def evaluate_and_print(*arguments: object, **keywords: object) -> tuple[float, float]:
        nonlocal evaluations, number
        begin = time.process_time()
        loss, accuracy = evaluate(*arguments, **keywords)
        if is_test(*arguments, **keywords):
            number += 1
            minutes = (begin - start - evaluations) / 60
            line = {"step": number * steps, "cpu_minutes": round(minutes, 1), "test_accuracy": round(accuracy, 2)}
            print("\n" + json.dumps(line), file=sys.stderr, flush=True)
        evaluations += time.process_time() - begin
        return loss, accuracy

    return evaluate_and_print


if __name__ == "__main__":
    main()
