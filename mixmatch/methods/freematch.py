"""FreeMatch: thresholds that follow the network's confidence, each class's own, and a loss for unequal use of classes.

Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, arXiv:2205.07246.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mixmatch.data.pool import one_hot
from mixmatch.methods.base import Examples, Loss, MethodContext
from mixmatch.methods.fixmatch import FixMatch, WeakToStrongSettings
from mixmatch.settings import NonNegative


class FreeMatchSettings(WeakToStrongSettings):
    """The method's settings."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="lambda, of the running means")
    fairness: NonNegative = Field(0.001, description="w_f, weight of the fairness loss")


class FreeMatch(FixMatch):
    """FixMatch with self-adapting thresholds, and self-adapting fairness.

    State: running means of confidence, of predictions, and of the shares of the classes that they name.
    """

    settings_type = FreeMatchSettings
    parts = (*FixMatch.parts, "loss_fairness")
    descriptions: ClassVar = FixMatch.descriptions | {
        "loss_fairness": "minus the cross-entropy of the running class shares to those on strong views"
    }

    def __init__(self, settings: FreeMatchSettings, task: MethodContext) -> None:
        super().__init__(settings, task)
        count = len(task.classes)
        self.state = {
            "confidence": torch.full((), 1 / count, device=task.device),
            "prediction": torch.full((count,), 1 / count, device=task.device),
            "named": torch.full((count,), 1 / count, device=task.device),
        }

    def weigh(self, guesses: Tensor) -> Tensor:
        """Move the running means (equations 5, 6 and 12), and keep what is above its class's threshold (7 and 8)."""
        moved = 1 - self.settings.momentum
        confidence, label = guesses.max(dim=1)
        self.state["confidence"].lerp_(confidence.mean(), moved)
        self.state["prediction"].lerp_(guesses.mean(dim=0), moved)
        self.state["named"].lerp_(one_hot(label, guesses.shape[1]).mean(dim=0), moved)
        thresholds = self.state["confidence"] * self.state["prediction"] / self.state["prediction"].amax()
        return (confidence >= thresholds[label]).to(guesses.dtype)

    def loss(self, network: nn.Module, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """FixMatch's loss and the fairness of what was kept (equation 11), see ``Method.loss``."""
        logits = network(examples.images)
        total, parts = self.loss_of(logits, examples.targets)
        size = self.task.batch_size
        strong, kept = logits[size:].to(examples.targets.dtype).softmax(dim=1), examples.targets[size:].sum(dim=1)
        fairness = fairness_loss(strong, kept, self.state["prediction"], self.state["named"])
        return Loss(total + self.settings.fairness * fairness, {**parts, "loss_fairness": fairness})


def fairness_loss(strong: Tensor, kept: Tensor, prediction: Tensor, named: Tensor) -> Tensor:
    """Return sum of a * log(b), a and b the normalized quotients of mean prediction by share of labels.

    Args:
        strong: (M, C) predictions on strong views.
        kept: (M,) 1 for those that count, 0 for the others. Where none counts the loss is 0.
        prediction, named: (C,) running means on weak views, which make a.

    Returns:
        A scalar, at most 0.
    """
    weights = kept / kept.sum().clamp_min(1)
    here = (weights[:, None] * strong).sum(dim=0)
    labels = (weights[:, None] * one_hot(strong.argmax(dim=1), strong.shape[1])).sum(dim=0)
    a = _quotient(prediction, named)
    b = _quotient(here, labels)
    return (a * (b + 1e-12).log()).sum() * (kept.sum() > 0)


def _quotient(mean: Tensor, share: Tensor) -> Tensor:
    """Return mean / share, 0 where there is no share, normalized."""
    quotient = torch.where(share > 0, mean / share.clamp_min(1e-12), 0.0)
    return quotient / quotient.sum().clamp_min(1e-12)
