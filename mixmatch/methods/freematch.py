"""FreeMatch: FixMatch with self-adaptive thresholds for each class, and a loss against unequal use of the classes.

Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, arXiv:2205.07246.
"""

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mixmatch.methods.base import MethodContext
from mixmatch.methods.fixmatch import WeakToStrong, WeakToStrongSettings
from mixmatch.methods.losses import one_hot
from mixmatch.settings import NonNegative


class FreeMatchSettings(WeakToStrongSettings):
    """The settings."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="lambda, decay of the running means")
    fairness: NonNegative = Field(
        0.05,
        description="w_f, weight of the fairness loss; 0.01 in the paper for SVHN, and with the fewest labels of a "
        "data set",
    )
    min_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="thresholds are at least this high; 0.9 in the paper for SVHN"
    )
    max_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        1, description="thresholds are at most this high; 0.95 in the paper for SVHN"
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        if self.min_threshold > self.max_threshold:
            raise ValueError("min_threshold is above max_threshold; lower it")
        return self


class FreeMatch(WeakToStrong[FreeMatchSettings]):
    """Self-adaptive thresholds and fairness.

    State: running means of the confidence, of the predictions, and of the frequencies of the predicted classes.
    """

    settings_type = FreeMatchSettings
    loss_names = (*WeakToStrong.loss_names, "loss_fairness")
    descriptions: ClassVar = WeakToStrong.descriptions | {
        "loss_fairness": "negative cross-entropy of mean predictions, each divided by its class frequency: "
        "running means against strong views"
    }

    def __init__(self, settings: FreeMatchSettings, context: MethodContext) -> None:
        super().__init__(settings, context)
        count = len(context.classes)
        self.state = {
            "confidence": torch.full((), 1 / count, device=context.device),
            "prediction": torch.full((count,), 1 / count, device=context.device),
            "histogram": torch.full((count,), 1 / count, device=context.device),
        }

    def pseudo_label_weights(self, guesses: Tensor, index: Tensor) -> Tensor:
        """Update the running means (equations 5, 6, 10); return 1 above the threshold of the class (7, 8), else 0."""
        rate = 1 - self.settings.momentum
        confidence, label = guesses.max(dim=1)
        self.state["confidence"].lerp_(confidence.mean(), rate)
        self.state["prediction"].lerp_(guesses.mean(dim=0), rate)
        self.state["histogram"].lerp_(one_hot(label, guesses.shape[1]).mean(dim=0), rate)
        thresholds = self.state["confidence"] * self.state["prediction"] / self.state["prediction"].amax()
        thresholds = thresholds.clamp(self.settings.min_threshold, self.settings.max_threshold)
        return (confidence >= thresholds[label]).to(guesses.dtype)

    def extra_loss(self, strong: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the fairness loss of the strong views that count (equation 11)."""
        fairness = fairness_loss(strong.softmax(dim=1), weights, self.state["prediction"], self.state["histogram"])
        return self.settings.fairness * fairness, {"loss_fairness": fairness}


def fairness_loss(predictions: Tensor, kept: Tensor, mean: Tensor, histogram: Tensor) -> Tensor:
    """Return sum(a * log(b)), where a and b are normalized quotients of mean prediction and class histogram.

    Args:
        predictions: (M, C) on strong views, for b.
        kept: (M,) 1 for those that count, else 0. The loss is 0 if none counts.
        mean, histogram: (C,) running means on weak views, for a.

    Returns:
        A scalar, at most 0.
    """
    weights = kept / kept.sum().clamp_min(1)
    labels = one_hot(predictions.argmax(dim=1), predictions.shape[1])
    a = _normalized_quotient(mean, histogram)
    b = _normalized_quotient((weights[:, None] * predictions).sum(dim=0), (weights[:, None] * labels).sum(dim=0))
    return (a * (b + 1e-12).log()).sum() * (kept.sum() > 0)


def _normalized_quotient(mean: Tensor, histogram: Tensor) -> Tensor:
    """Return mean / histogram, normalized; 0 where the histogram is 0."""
    quotient = torch.where(histogram > 0, mean / histogram.clamp_min(1e-12), 0.0)
    return quotient / quotient.sum().clamp_min(1e-12)
