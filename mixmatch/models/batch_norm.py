"""Batch normalization of several batches that are concatenated in one tensor."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3  # TensorFlow's default, which the authors' code uses


class BatchNorm(nn.Module):
    """Batch normalization of several batches that are concatenated in one tensor.

    MixMatch's forward passes (label guessing, then K + 1 interleaved batches) are separate batches to BatchNorm, and
    only the first training batch may update the running statistics. Here the convolutions run once over all of them.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float, epsilon: float = EPSILON) -> None:
        """Start at the identity.

        Args:
            channels: of the input.
            momentum: weight of a batch in the running statistics (TensorFlow's 0.999 is 0.001 here).
            epsilon: is added to the variance.
        """
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Normalize ``x``.

        Args:
            x: (num_batches * n, channels, ...).
            num_batches: in training, how many batches of equal size ``x`` holds; each has its own mean and variance.
            update_statistics: in training, whether the first batch updates the running statistics.
        """
        if not self.training:
            return self._normalize(x, self.running_mean, self.running_var)
        running = (self.running_mean, self.running_var) if update_statistics else (None, None)
        first, *others = x.chunk(num_batches)
        normalized = [self._normalize(first, *running), *(self._normalize(batch, None, None) for batch in others)]
        return torch.cat(normalized) if others else normalized[0]

    def _normalize(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.epsilon)
