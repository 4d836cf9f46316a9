"""Losses and label distributions that several methods share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Map class indices (n,) int64 to distributions (n, C) in torch's default dtype.

    ``F.one_hot`` checks the range of the labels, which stops a GPU at every step.
    """
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(torch.get_default_dtype())


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy against soft labels (MixMatch, equation 3).

    Args:
        logits: (n, C), of any floating-point dtype.
        targets: (n, C). Rows that sum to less than 1 count for less.
    """
    return F.cross_entropy(logits.to(targets.dtype), targets)


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance of probabilities, averaged over examples and classes (MixMatch, equation 4).

    Args:
        logits: (n, C), of any floating-point dtype.
        targets: (n, C), rows sum to 1.
    """
    return F.mse_loss(logits.to(targets.dtype).softmax(dim=1), targets)
