"""Predictions and accuracy of a network on images that stay as they are."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixmatch.data.weak_augmentation import to_float
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext

# Pixels of a batch: 256 images of 32x32 on the CPU, 2,048 on a GPU. Larger ones are no faster.
BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**21}


class Evaluation(NamedTuple):
    """Of one set of images."""

    accuracy: float  # percent
    confusion: Tensor  # (C, C) int64 on the CPU, rows the true class, columns the predicted


def predict(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    index: Tensor | None = None,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> Tensor:
    """Return class probabilities, in evaluation mode (BatchNorm by its running statistics), without gradient.

    Args:
        model: is left in the mode it was in.
        images: (n, h, w, c) uint8, on any device.
        device: the model's.
        index: (m,) int64, which of the images; all by default.
        ranks: each predicts its share; all return the whole.

    Returns:
        (n, C), or (m, C), float32 on ``device``.
    """
    if index is None:
        index = torch.arange(len(images), device=images.device)
    # Every share has the same size: the last image stands in for those that are missing in the last one.
    places = torch.arange(-(-len(index) // ranks.world) * ranks.world, device=index.device).clamp(max=len(index) - 1)
    mine = places[ranks.share(len(places))]
    batch_size = max(1, BATCH_PIXELS[device.type] // (images.shape[1] * images.shape[2]))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batches = (images[i] for i in index[mine].split(batch_size))
            parts = [model(to_float(batch.to(device))).float().softmax(dim=1) for batch in batches]
            return ranks.gather(torch.cat(parts))[: len(index)]
    finally:
        model.train(training)


def score(probabilities: Tensor, labels: Tensor) -> Evaluation:
    """Compare predictions with the truth.

    Args:
        probabilities: (n, C).
        labels: (n,) int64, the true classes, on any device.
    """
    predicted = probabilities.argmax(dim=1)
    confusion = confusion_matrix(labels.to(predicted.device), predicted, probabilities.shape[1]).cpu()
    return Evaluation(100 * confusion.trace().item() / len(labels), confusion)


def confusion_matrix(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count pairs of true and predicted class, both (n,) int64: (C, C), the true class in rows."""
    pairs = truth * num_classes + predicted
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def recalls(confusion: Tensor | np.ndarray) -> list[float | None]:
    """Return of each true class, the rows of (C, C) counts, the percentage that is right; None without images."""
    pairs = zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), strict=True)
    return [100 * right / count if count else None for right, count in pairs]


def balanced(shares: list[float | None]) -> float:
    """Return the mean of the recalls of the classes that have images: accuracy as if these had equally many."""
    known = [share for share in shares if share is not None]
    return sum(known) / len(known)


def effective_classes(counts: list[float]) -> float:
    """Return exp(entropy) of a histogram: how many classes equally used would spread as widely."""
    total = sum(counts)
    return math.exp(-sum(count / total * math.log(count / total) for count in counts if count))
