"""SoftMatch: labels weigh by how their confidence stands among all, instead of counting from a threshold on.

Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR 2023,
arXiv:2301.10921.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mixmatch.methods.base import MethodContext
from mixmatch.methods.fixmatch import FixMatch, WeakToStrongSettings

DEVIATIONS = 2  # the weight has fallen to exp(-1/2) at half a deviation below the mean: n_sigma of the authors' code


class SoftMatchSettings(WeakToStrongSettings):
    """The method's settings."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="m, of the running means")
    align: bool = Field(True, description="bring guesses to equal class shares before they are weighed")


class SoftMatch(FixMatch):
    """FixMatch with weights that fall as a Gaussian below the running mean of confidence.

    State: running mean and variance of confidence, and of predictions.
    """

    settings_type = SoftMatchSettings

    def __init__(self, settings: SoftMatchSettings, task: MethodContext) -> None:
        super().__init__(settings, task)
        count = len(task.classes)
        self.state = {
            "mean": torch.full((), 1 / count, device=task.device),
            "variance": torch.ones((), device=task.device),
            "prediction": torch.zeros(count, device=task.device),  # until the first batch: its mean
        }

    def weigh(self, guesses: Tensor) -> Tensor:
        """Align (equation 9), move the running means (equations 6 and 7), and weigh by them (equation 8)."""
        moved = 1 - self.settings.momentum
        if self.settings.align:
            mean, running = guesses.mean(dim=0), self.state["prediction"]
            running.copy_(torch.where(running.sum() == 0, mean, running.lerp(mean, moved)))
            guesses = guesses / running.clamp_min(1e-6)
            guesses = guesses / guesses.sum(dim=1, keepdim=True)
        confidence = guesses.amax(dim=1)
        self.state["mean"].lerp_(confidence.mean(), moved)
        self.state["variance"].lerp_(confidence.var(correction=int(len(confidence) > 1)), moved)
        below = (confidence - self.state["mean"]).clamp_max(0)
        return torch.exp(-below.square() * DEVIATIONS**2 / (2 * self.state["variance"]))
