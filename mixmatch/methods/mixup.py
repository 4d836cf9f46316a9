"""MixUp as in MixMatch (equations 8 to 11): one lambda for each example, and the interleaving of batches."""

from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

MixUpMode = Literal["joint", "labeled", "unlabeled", "separate", "none"]


class MixUpParams(NamedTuple):
    """For each of n examples its partner and its own weight."""

    partner: Tensor  # (n,) int64: example i is mixed with example partner[i]
    lam: Tensor  # (n,) float32 in [0.5, 1], lambda' = max(lambda, 1 - lambda)


def sample_mixup(
    n: int, alpha: float, generator: Generator, mode: MixUpMode = "joint", num_labeled: int = 0
) -> MixUpParams:
    """Sample partners and lambdas, lambda ~ Beta(alpha, alpha) (equations 8 and 9; modes: table 4 of the paper).

    Args:
        n: number of examples.
        alpha: parameter of the Beta distribution.
        generator: on the device of the examples.
        mode: ``joint`` shuffles all examples; ``separate`` the labeled and the unlabeled ones among themselves;
            ``labeled`` and ``unlabeled`` mix only these, among themselves; ``none`` mixes nothing.
        num_labeled: the first so many examples are the labeled ones.
    """
    device = generator.device
    gamma = torch._standard_gamma(torch.full((2, n), alpha + 1, device=device), generator=generator)
    uniform = torch.rand((2, n), generator=generator, device=device)
    order = torch.rand(n, generator=generator, device=device)
    # lambda = a / (a + b) with a, b ~ Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha), in logarithms: small alpha
    # would underflow.
    log_a, log_b = gamma.log() + (1 - uniform).log() / alpha
    lam = (log_a - log_b).abs().sigmoid()
    labeled = torch.arange(n, device=device) < num_labeled
    if mode != "joint":
        order = order + ~labeled  # labeled examples sort first: each part is shuffled by itself
    if mode in ("unlabeled", "none"):
        lam = torch.where(labeled, 1.0, lam)
    if mode in ("labeled", "none"):
        lam = torch.where(labeled, lam, 1.0)
    return MixUpParams(order.argsort(), lam)


def mixup(values: Tensor, params: MixUpParams) -> Tensor:
    """Mix each example with its partner (equations 10 and 11): lambda' * v + (1 - lambda') * v[partner].

    Args:
        values: (n, ...), images or label distributions.
        params: the same for images and labels.
    """
    lam = params.lam.view(-1, *[1] * (values.dim() - 1))
    return lam * values + (1 - lam) * values[params.partner]


def interleave_indices(batch_size: int, num_batches: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the authors' interleaving of ``num_batches`` concatenated batches, as a permutation of the examples.

    Batch 0 (X') is cut into ``num_batches`` slices and swaps slice i with that of batch i: each batch then holds
    labeled and unlabeled examples, and the first, which alone updates BatchNorm's running statistics, some of every
    batch. The permutation is its own inverse.

    Returns:
        (num_batches * batch_size,) int64.
    """
    order = torch.arange(num_batches * batch_size, device=device).view(num_batches, batch_size)
    short, longer = divmod(batch_size, num_batches)
    start = short
    for i in range(1, num_batches):
        end = start + short + (i >= num_batches - longer)
        order[0, start:end] += i * batch_size
        order[i, start:end] -= i * batch_size
        start = end
    return order.flatten()
