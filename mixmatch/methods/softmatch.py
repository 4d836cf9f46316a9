"""SoftMatch: FixMatch with pseudo-label weights that fall off as a Gaussian below the mean confidence.

Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR 2023,
arXiv:2301.10921.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mixmatch.methods.base import MethodContext
from mixmatch.methods.fixmatch import WeakToStrong, WeakToStrongSettings

N_SIGMA = 2  # of the authors' code: the Gaussian has half the running standard deviation


class SoftMatchSettings(WeakToStrongSettings):
    """The settings."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="m, decay of the running means")
    align: bool = Field(True, description="align guesses to equal class frequencies before they are weighted")


class SoftMatch(WeakToStrong[SoftMatchSettings]):
    """Gaussian weights of pseudo-labels.

    State: running mean and variance of the confidence, running mean of the predictions.
    """

    settings_type = SoftMatchSettings

    def __init__(self, settings: SoftMatchSettings, context: MethodContext) -> None:
        super().__init__(settings, context)
        count = len(context.classes)
        self.state = {
            "mean": torch.full((), 1 / count, device=context.device),
            "variance": torch.ones((), device=context.device),
            "prediction": torch.zeros(count, device=context.device),  # the first batch sets it
        }

    def pseudo_label_weights(self, guesses: Tensor, index: Tensor) -> Tensor:
        """Update the running means (equations 6 and 7); return the weights (9) of aligned guesses (8)."""
        rate = 1 - self.settings.momentum
        confidence = guesses.amax(dim=1)
        self.state["mean"].lerp_(confidence.mean(), rate)
        self.state["variance"].lerp_(confidence.var(), rate)
        if self.settings.align:
            mean, running = guesses.mean(dim=0), self.state["prediction"]
            running.copy_(torch.where(running.sum() == 0, mean, running.lerp(mean, rate)))
            guesses = guesses / running.clamp_min(1e-6)
            confidence = (guesses / guesses.sum(dim=1, keepdim=True)).amax(dim=1)
        below = (confidence - self.state["mean"]).clamp_max(0)
        variance = self.state["variance"].clamp_min(torch.finfo(guesses.dtype).tiny)  # 0 if all guesses are alike
        return torch.exp(-below.square() * N_SIGMA**2 / (2 * variance))
