r"""Measure which pictures are worth a label first: accuracy by number of labels, for each choice of ``mixmatch label``.

    python3 benchmarks/active_learning.py --weights data/tf_efficientnet_lite0.safetensors --plot docs/labeling.png \
        "Flowers 17=data/flowers17-all@224" "CIFAR-10 (JPEG), 4 classes=data/four-classes-all@128"
    python3 benchmarks/active_learning.py --set train.steps=600 --choose mixed random --seeds 3 \
        "CIFAR-10 (JPEG), 4 classes=data/four-classes-all@32"

Each data set is NAME=FOLDER@PIXELS; the folder has train/<class>/ and test/<class>/. A person is simulated who starts
with 5 labels of each class and labels three times 5 for each class of what is chosen. Each time, a classifier is
trained with all labels: logistic regression on the features of a frozen network of timm (a linear probe, which takes
seconds), or a run of the config ``folder``, whose unlabeled pictures are the others.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
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

import mixmatch
from mixmatch.data import load_data
from mixmatch.data.folder.decode import Unreadable, decode_all
from mixmatch.data.split import Split
from mixmatch.labeling.choose import CHOICES, Choice, choose

FIRST = STEP = 5  # labels for each class
ROUNDS = 4
RANDOM_ROUNDS = 8  # to see how many random labels are worth as much

Array = NDArray[np.floating]
Pictures = tuple[Array, NDArray[np.int64]]  # features (n, D), labels (n,)
# Labeled indices and a seed -> test accuracy in percent; class probabilities and features of all training pictures.
Learner = Callable[[NDArray[np.int64], int], tuple[float, Array, Array]]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=FOLDER@PIXELS")
    parser.add_argument("--weights", type=Path, help="of EfficientNet-Lite0: train linear probes")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the runs")
    parser.add_argument("--choose", nargs="+", default=CHOICES, choices=CHOICES)
    parser.add_argument("--random-rounds", type=int, default=RANDOM_ROUNDS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    figure, axes = plt.subplots(1, len(options.data), figsize=(4.5 * len(options.data), 3.6), squeeze=False)
    for text, ax in zip(options.data, axes[0], strict=True):
        name, _, rest = text.partition("=")
        folder, _, pixels = rest.partition("@")
        if options.weights:
            learner, labels = make_probe(options.weights, Path(folder), int(pixels))
        else:
            learner, labels = make_trainer([f"data.root={folder}", f"data.image_size={pixels}", *options.set])
        num_labels = [FIRST + STEP * number for number in range(options.random_rounds)]
        for how in options.choose:
            rounds = options.random_rounds if how == "random" else ROUNDS
            runs = np.array([simulate(learner, labels, how, rounds, seed) for seed in range(options.seeds)])
            mean, std = runs.mean(axis=0), runs.std(axis=0, ddof=1)
            print(json.dumps({"data": name, "how": how, "mean": mean.round(2).tolist(), "std": std.round(2).tolist()}))
            ax.plot(num_labels[:rounds], mean, label=how, marker="o", color="gray" if how == "random" else None)
        ax.set(title=name, xlabel="labels of each class, on average", ylabel="test accuracy (%)")
    axes[0, 0].legend()
    if options.plot:
        figure.tight_layout()
        figure.savefig(options.plot, dpi=110)


def make_probe(weights: Path, folder: Path, pixels: int) -> tuple[Learner, NDArray[np.int64]]:
    """Return a learner of linear probes, and the labels of the training pictures."""
    network = load_encoder(weights)
    train, test = (read(network, Path(folder, part), pixels) for part in ("train", "test"))
    scaler = StandardScaler().fit(train[0])
    x, test_x = scaler.transform(train[0]), scaler.transform(test[0])

    def learn(known: NDArray[np.int64], seed: int) -> tuple[float, Array, Array]:
        classifier = LogisticRegression(C=0.01, max_iter=1000).fit(x[known], train[1][known])
        return 100 * classifier.score(test_x, test[1]), classifier.predict_proba(x), x

    return learn, train[1]


def load_encoder(weights: Path) -> torch.nn.Module:
    """Return EfficientNet-Lite0 without its last layer."""
    network: torch.nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    tensors = load_file(weights)
    network.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("classifier")})
    return network


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


def make_trainer(settings: list[str]) -> tuple[Learner, NDArray[np.int64]]:
    """Return a learner of runs of the config ``folder`` with these settings, and the labels of the pictures."""
    config = mixmatch.load_config("folder", [*settings, "data.num_labeled=all", "data.num_validation=0"])
    data = load_data(config.data, torch.device("cpu"))
    images = data.images
    finished: dict[bytes, tuple[float, Array, Array]] = {}  # the choices share the first round

    def learn(known: NDArray[np.int64], seed: int) -> tuple[float, Array, Array]:
        if (key := known.tobytes()) not in finished:
            others = np.setdiff1d(np.arange(len(images)), known)
            split = Split(data.name, data.fingerprint(), sorted(known.tolist()), others.tolist(), [], data.files)
            folder = Path(tempfile.mkdtemp())
            (folder / "split.json").write_text(split.to_json())
            overrides = [f"data.split_file={folder / 'split.json'}", f"seed={seed}"]
            run = mixmatch.load_config("folder", [*settings, "data.num_validation=0", *overrides])
            results = mixmatch.train(run, folder / "run", quiet=True)
            model = mixmatch.load_model(folder / "run")
            features = model.embed(images)
            with torch.no_grad():
                probabilities = model.network.dense(features).softmax(dim=1)
            assert results.test_accuracy is not None
            finished[key] = results.test_accuracy, probabilities.numpy(), features.numpy()
            shutil.rmtree(folder)
        return finished[key]

    return learn, data.labels.numpy()


def simulate(learn: Learner, labels: NDArray[np.int64], how: Choice, rounds: int, seed: int) -> list[float]:
    """Return the test accuracy, in percent, after each round of labeling."""
    random = np.random.default_rng(seed)
    num_classes = labels.max() + 1
    known = np.concatenate(
        [random.choice(np.flatnonzero(labels == c), FIRST, replace=False) for c in range(num_classes)]
    )
    accuracies = []
    for number in range(rounds):
        accuracy, probabilities, features = learn(known, seed)
        accuracies.append(accuracy)
        others = np.setdiff1d(np.arange(len(labels)), known)
        chosen = choose(probabilities[others], features[others], STEP * num_classes, how, 100 * seed + number)
        known = np.concatenate([known, others[chosen]])
    return accuracies


if __name__ == "__main__":
    main()
