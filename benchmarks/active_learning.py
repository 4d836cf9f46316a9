r"""Measure which pictures are worth a label first: accuracy by number of labels, for each choice of ``mixmatch label``.

    python3 benchmarks/active_learning.py data/tf_efficientnet_lite0.safetensors --plot docs/labeling.png \
        "Flowers 17=data/flowers17-all@224" "CIFAR-10 (JPEG), 4 classes=data/four-classes-all@128"

Each data set is NAME=FOLDER@PIXELS; the folder has train/<class>/ and test/<class>/. A person is simulated who starts
with 5 labels of each class and labels three times 5 for each class of what is chosen. Each time, logistic regression on
the features of a frozen network of timm is trained with all labels: a linear probe, which takes seconds, not hours.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mixmatch.data.folder.decode import Unreadable, decode_all
from mixmatch.labeling.choose import CHOICES, choose

FIRST = STEP = 5  # labels for each class
ROUNDS = 4
RANDOM_ROUNDS = 8  # to see how many random labels are worth as much

Pictures = tuple[NDArray[np.float32], NDArray[np.int64]]  # features (n, D), labels (n,)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", nargs="+", metavar="NAME=FOLDER@PIXELS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    weights = load_file(options.weights)
    network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("classifier")})
    figure, axes = plt.subplots(1, len(options.data), figsize=(4.5 * len(options.data), 3.6), squeeze=False)
    for text, ax in zip(options.data, axes[0], strict=True):
        name, _, rest = text.partition("=")
        folder, _, pixels = rest.partition("@")
        train, test = (read(network, Path(folder, part), int(pixels)) for part in ("train", "test"))
        num_labels = [FIRST + STEP * number for number in range(RANDOM_ROUNDS)]
        for how in CHOICES:
            rounds = RANDOM_ROUNDS if how == "random" else ROUNDS
            runs = np.array([simulate(train, test, how, rounds, seed) for seed in range(options.seeds)])
            mean, std = runs.mean(axis=0), runs.std(axis=0, ddof=1)
            print(json.dumps({"data": name, "how": how, "mean": mean.round(2).tolist(), "std": std.round(2).tolist()}))
            ax.plot(num_labels[:rounds], mean, label=how, marker="o", color="gray" if how == "random" else None)
        ax.set(title=name, xlabel="labels of each class, on average", ylabel="test accuracy (%)")
    axes[0, 0].legend()
    if options.plot:
        figure.tight_layout()
        figure.savefig(options.plot, dpi=110)


def read(network: torch.nn.Module, folder: Path, pixels: int) -> Pictures:
    """Return the features and labels of the pictures in <class>/ below a folder."""
    files = sorted(folder.glob("*/*"))
    classes = sorted({file.parent.name for file in files})
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    features, labels, batch = [], [], []
    for number, (file, picture) in enumerate(decode_all(files, pixels)):
        assert not isinstance(picture, Unreadable), file
        batch.append(torch.from_numpy(picture.pixels).permute(2, 0, 1) / 255)
        labels.append(classes.index(file.parent.name))
        if len(batch) == 64 or number == len(files) - 1:
            with torch.no_grad():
                features.append(network((torch.stack(batch) - mean) / std).numpy())
            batch = []
    return np.concatenate(features), np.array(labels)


def simulate(train: Pictures, test: Pictures, how: str, rounds: int, seed: int) -> list[float]:
    """Return the test accuracy, in percent, after each round of labeling."""
    scaler, random = StandardScaler().fit(train[0]), np.random.default_rng(seed)
    x, labels, test_x = scaler.transform(train[0]), train[1], scaler.transform(test[0])
    num_classes = labels.max() + 1
    known = np.concatenate(
        [random.choice(np.flatnonzero(labels == c), FIRST, replace=False) for c in range(num_classes)]
    )
    accuracies = []
    for number in range(rounds):
        classifier = LogisticRegression(C=0.01, max_iter=1000).fit(x[known], labels[known])
        accuracies.append(100 * classifier.score(test_x, test[1]))
        others = np.setdiff1d(np.arange(len(x)), known)
        chosen = choose(classifier.predict_proba(x[others]), x[others], STEP * num_classes, how, 100 * seed + number)
        known = np.concatenate([known, others[chosen]])
    return accuracies


if __name__ == "__main__":
    main()
