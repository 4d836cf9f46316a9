"""How far a network's confidence can be trusted."""

from torch import Tensor

NUM_BINS = 15


def expected_calibration_error(probabilities: Tensor, true_labels: Tensor) -> float:
    """Return the mean of |accuracy - confidence|, in [0, 1], over bins of equal width (Guo et al., arXiv:1706.04599).

    Args:
        probabilities: (n, C), n above 0.
        true_labels: (n,) int64, all known.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    correct = (predicted == true_labels).double()
    bins = ((confidence * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)  # bin i is (i / 15, (i + 1) / 15]
    gaps = bins.bincount(correct - confidence, minlength=NUM_BINS)  # sum of differences in each bin
    return gaps.abs().sum().item() / len(true_labels)
