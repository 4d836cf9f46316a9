"""Predictions of a network on images without augmentation, and their accuracy."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixmatch.data.stored_images import Images, StoredImages, read_ahead
from mixmatch.data.weak_augmentation import to_float
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext

# Pixels per batch: 256 images of 32x32 on the CPU, 2,048 on a GPU. Larger batches are not faster.
BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**21}


class Evaluation(NamedTuple):
    """The accuracy of predictions.

    Attributes:
        accuracy: in percent.
        loss: cross-entropy.
        confusion: (C, C) int64, true classes in rows, predicted ones in columns.
    """

    accuracy: float
    loss: float
    confusion: np.ndarray


def compute_outputs(
    model: nn.Module,
    images: Images,
    device: torch.device,
    index: Tensor | None = None,
    distributed: DistributedContext = SINGLE_PROCESS,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute the outputs of a network in evaluation mode, without gradients.

    Args:
        model: from normalized images to D outputs, such as logits; keeps its mode.
        images: (n, h, w, c) uint8, on any device or in a file.
        device: of the model.
        index: (m,) int64, where the images are: those to predict; all by default.
        distributed: each process predicts its share and returns all.
        forward: computes other outputs of ``model``, such as features.

    Returns:
        (n, D), or (m, D), float32 on ``device``.
    """
    if index is None:
        index = torch.arange(len(images), device=images.device)
    # Shares have equal sizes: the last image is repeated where the last share would be smaller.
    padded_size = -(-len(index) // distributed.world_size) * distributed.world_size
    padded = torch.cat([index, index[-1:].expand(padded_size - len(index))])
    pixels = BATCH_PIXELS.get(device.type, BATCH_PIXELS["cpu"])
    batch_size = max(1, pixels // (images.shape[1] * images.shape[2]))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batch_indices = padded.chunk(distributed.world_size)[distributed.rank].split(batch_size)
            batches = (read_ahead if isinstance(images, StoredImages) else map)(images.__getitem__, batch_indices)
            parts = [(forward or model)(to_float(batch.to(device))).float() for batch in batches]
            return distributed.all_gather(torch.cat(parts))[: len(index)]
    finally:
        model.train(training)


def evaluate_predictions(probabilities: Tensor, true_labels: Tensor) -> Evaluation:
    """Compare predictions, (n, C) probabilities, with the true classes, (n,) int64."""
    confusion = confusion_matrix(true_labels, probabilities.argmax(dim=1), probabilities.shape[1])
    likelihoods = probabilities.gather(1, true_labels[:, None]).clamp(min=torch.finfo(torch.float32).tiny)
    return Evaluation(100 * int(confusion.trace()) / len(true_labels), -likelihoods.log().mean().item(), confusion)


def confusion_matrix(true_labels: Tensor, predicted: Tensor, num_classes: int) -> np.ndarray:
    """Count pairs of true and predicted class, both (n,) int64 on any device: (C, C) int64, true classes in rows."""
    counts = (num_classes * true_labels + predicted).bincount(minlength=num_classes**2)
    matrix: np.ndarray = counts.view(num_classes, num_classes).cpu().numpy()
    return matrix


def class_recalls(confusion: np.ndarray) -> list[float | None]:
    """Return the percentage of each true class that is predicted correctly, None for a class without images."""
    counts = confusion.sum(axis=1).tolist()
    return [
        100 * correct / count if count else None
        for correct, count in zip(confusion.diagonal().tolist(), counts, strict=True)
    ]


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Return the mean recall, in percent, of the classes that have images."""
    recalls = [recall for recall in class_recalls(confusion) if recall is not None]
    return sum(recalls) / len(recalls)


def effective_num_classes(counts: Sequence[float]) -> float:
    """Return exp(entropy) of a histogram: the number of equally frequent classes with the same entropy."""
    total = sum(counts)
    return math.exp(-sum(count / total * math.log(count / total) for count in counts if count))
