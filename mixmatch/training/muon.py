"""Muon for convolutions, Adam for everything else.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io/posts/muon); the
weights keep a constant norm, as in their airbench for CIFAR-10.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # their quintic: steep at 0, so that few iterations suffice
ITERATIONS = 5


class Muon(torch.optim.Adam):
    """Updates the weight of a convolution by the orthogonalized momentum of its gradient.

    A weight with n output channels is a matrix of n rows. Before its update it is scaled to the norm sqrt(n), that of n
    orthonormal rows: followed by BatchNorm this changes nothing, and in residual blocks the branches keep their sizes.
    Weight decay therefore has next to no effect. The state is ``momentum_buffer``.
    """

    def __init__(
        self,
        parameters: Iterable[dict[str, Any]],
        lr: float | Tensor,
        muon_lr_ratio: float,
        momentum: float,
        fused: bool,
        capturable: bool,
    ) -> None:
        """Create the optimizer.

        Args:
            parameters: in groups; those with four dimensions are convolutions.
            lr: of Adam, for groups without their own.
            muon_lr_ratio: the learning rate of convolutions, divided by ``lr``.
            momentum: of the gradients of convolutions, Nesterov.
            fused, capturable: of torch's Adam.
        """
        super().__init__(parameters, lr=lr, fused=fused, capturable=capturable)
        self.muon_lr_ratio, self.momentum = muon_lr_ratio, momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: the step is recorded
        """Update the parameters that have gradients."""
        gradients: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            convolutions = [weight for weight in group["params"] if weight.dim() == 4 and weight.grad is not None]
            self._update(convolutions, group["lr"])
            gradients |= {weight: weight.grad for weight in convolutions}
        for weight in gradients:  # Adam skips parameters without a gradient
            weight.grad = None
        super().step()
        for weight, gradient in gradients.items():
            weight.grad = gradient

    def _update(self, convolutions: list[Tensor], lr: float | Tensor) -> None:
        """Update convolutions, which have gradients."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in convolutions:
            by_shape.setdefault(weight.shape, []).append(weight)
        for shape, weights in by_shape.items():
            buffers = [self._buffer(weight) for weight in weights]
            grads = [weight.grad for weight in weights if weight.grad is not None]
            torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
            nesterov = torch._foreach_lerp(grads, buffers, self.momentum)
            updates = orthogonalize(torch.stack(nesterov).flatten(2)).unflatten(2, shape[1:])
            updates = updates * (lr * self.muon_lr_ratio)
            norms = torch.stack(torch._foreach_norm(weights)).clamp_min(1e-7)
            torch._foreach_mul_(weights, list((shape[0] ** 0.5 / norms).unbind()))
            torch._foreach_sub_(weights, list(updates.unbind()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # Adam's expects Adam's state for all parameters

    def _buffer(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate U V^T of the decompositions U S V^T of matrices (n, rows, columns): singular values 0.7 to 1.2.

    Newton-Schulz iterations: matrix products only. Singular values below a hundredth of the norm stay smaller.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.square().sum(dim=(1, 2), keepdim=True).sqrt() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
