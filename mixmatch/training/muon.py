"""Muon for convolutions, Adam for the rest.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io/posts/muon), with
the kernels kept at one length as in their airbench for CIFAR-10.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # their quintic: steep at 0, so that few rounds do
ROUNDS = 5


class Muon(torch.optim.Adam):
    """Momentum of a convolution's gradient, made orthogonal, is the step of its kernel; all else is Adam's.

    A kernel of n outputs is a matrix of n rows. Before its step it is brought to the length sqrt(n), that of n
    orthonormal rows: where BatchNorm follows that changes nothing, and where a sum does, the branches of a block keep
    their sizes. So decay of kernels has next to no effect. Its state is ``momentum_buffer``.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float | Tensor, of_kernels: float, momentum: float, **adam: bool
    ) -> None:
        """Make ready.

        Args:
            parameters: to be trained; those of four dimensions are convolutions.
            lr: of Adam.
            of_kernels: so many times ``lr`` is that of kernels.
            momentum: of their gradients, with Nesterov's look ahead.
            adam: options of torch's Adam.
        """
        super().__init__(parameters, lr=lr, **adam)
        self.of_kernels, self.momentum = of_kernels, momentum

    @torch.no_grad()
    def step(self) -> None:
        """Do a step with the parameters' gradients."""
        (group,) = self.param_groups
        kernels = [p for p in group["params"] if p.dim() == 4 and p.grad is not None]
        gradients = [kernel.grad for kernel in kernels]
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for kernel in kernels:
            by_shape.setdefault(kernel.shape, []).append(kernel)
        for shape, alike in by_shape.items():
            buffers = [self._buffer(kernel) for kernel in alike]
            torch._foreach_lerp_(buffers, [kernel.grad for kernel in alike], 1 - self.momentum)
            ahead = torch._foreach_lerp([kernel.grad for kernel in alike], buffers, self.momentum)
            steps = orthogonalize(torch.stack(ahead).flatten(2)).unflatten(2, shape[1:])
            steps = steps * (group["lr"] * self.of_kernels)
            lengths = torch.stack(torch._foreach_norm(alike)).clamp_min(1e-7)
            torch._foreach_mul_(alike, list((shape[0] ** 0.5 / lengths).unbind()))
            torch._foreach_sub_(alike, list(steps.unbind()))
        for kernel in kernels:  # Adam passes over what has no gradient
            kernel.grad = None
        super().step()
        for kernel, gradient in zip(kernels, gradients, strict=True):
            kernel.grad = gradient

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # Adam's expects that all state is Adam's

    def _buffer(self, kernel: nn.Parameter) -> Tensor:
        state = self.state[kernel]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(kernel)
        return state["momentum_buffer"]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring matrices (n, rows, columns) near U V^T of their decompositions U S V^T: singular values to 0.7 to 1.2.

    Those below a hundredth of the matrix's length stay smaller. Newton-Schulz rounds of products, no decomposition.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.square().sum(dim=(1, 2), keepdim=True).sqrt() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
