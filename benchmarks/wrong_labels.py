r"""Measure which wrong labels the review of ``mixmatch label`` finds: precision and recall of contradicted labels.

    python3 benchmarks/wrong_labels.py "Hand signs=data/signs-all@32" --set train.steps=300
    python3 benchmarks/wrong_labels.py "Hand signs=data/signs-all@100" --weights data/tf_efficientnet_lite0.safetensors

The folder has train/<class>/ and test/<class>/. 20 pictures of each class are labeled, 10% of them wrongly, at random;
the others are unlabeled. The features are those of a run of the config ``folder`` with the settings of ``--set``, or of
a frozen EfficientNet-Lite0.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from active_learning import load_encoder, read
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mixmatch
from mixmatch.data import DATASETS, DatasetEntry, ImageData
from mixmatch.data.folder.dataset import read_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.data.stored_images import select
from mixmatch.labeling.wrong_labels import predict_out_of_fold

LABELED, WRONG = 20, 0.1


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=FOLDER@PIXELS")
    parser.add_argument("--weights", type=Path, help="of EfficientNet-Lite0")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the runs")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    for text in options.data:
        name, _, rest = text.partition("=")
        folder, _, pixels = rest.partition("@")
        if options.weights:
            all_features, true_labels = read(load_encoder(options.weights), Path(folder, "train"), int(pixels))
        else:
            settings = [f"data.root={folder}", f"data.image_size={pixels}", "data.num_labeled=all", *options.set]
            config = mixmatch.load_config("folder", settings)
            assert isinstance(config.data, FolderSettings)
            data = read_folder(config.data, torch.device("cpu"), True)
            true_labels = data.labels.numpy()
        for seed in range(options.seeds):
            labeled, given = choose_labels(true_labels, seed)
            probabilities = {}
            if options.weights:
                features = all_features[labeled]
            else:
                features, probabilities["network"] = train(data, settings, labeled, given, seed)
            probabilities["out of fold"] = predict_out_of_fold(features, given)
            wrong = given != true_labels[labeled]
            for by, rows in probabilities.items():
                doubted = rows.argmax(axis=1) != given
                found, count = int((doubted & wrong).sum()), int(doubted.sum())
                scores = {"precision": round(found / max(1, count), 3), "recall": round(found / int(wrong.sum()), 3)}
                line = {
                    "data": name,
                    "seed": seed,
                    "wrong": int(wrong.sum()),
                    "by": by,
                    "contradicted": count,
                    **scores,
                }
                print(json.dumps(line), flush=True)


def choose_labels(true_labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of labeled pictures, and their labels, some of which are wrong."""
    random, num_classes = np.random.default_rng(seed), int(true_labels.max()) + 1
    members = [random.permutation(np.flatnonzero(true_labels == c))[:LABELED] for c in range(num_classes)]
    labeled = np.sort(np.concatenate(members))
    given = true_labels[labeled].copy()
    wrong = random.permutation(len(given))[: round(WRONG * len(given))]
    given[wrong] = (given[wrong] + random.integers(1, num_classes, len(wrong))) % num_classes
    return labeled, given


def train(
    data: ImageData, settings: list[str], labeled: NDArray[np.int64], given: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Train a run with these labels; return the features and class probabilities of the labeled pictures."""
    labels = torch.full_like(data.labels, -1)
    labels[labeled] = torch.from_numpy(given)
    relabeled = replace(data, labels=labels)
    DATASETS["relabeled"] = DatasetEntry(lambda *_: relabeled, FolderSettings)
    overrides = ["data.dataset=relabeled", "data.num_validation=0", f"seed={seed}"]
    with tempfile.TemporaryDirectory() as path:
        mixmatch.train(mixmatch.load_config("folder", [*settings, *overrides]), path, quiet=True)
        model = mixmatch.load_model(path)
    features = model.embed(select(data.images, labeled.tolist()))
    with torch.no_grad():
        return features.numpy(), model.network.dense(features).softmax(dim=1).numpy()


if __name__ == "__main__":
    main()
