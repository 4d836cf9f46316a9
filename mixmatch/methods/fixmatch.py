"""FixMatch: the prediction on a weak view labels a strong view, where the network is confident.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv:2001.07685. As in the authors' code, labeled images, weak and strong views are one batch to BatchNorm.
"""

from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from mixmatch.methods.base import Batch, Examples, Loss, Method, MethodContext, Networks
from mixmatch.methods.losses import one_hot, soft_cross_entropy
from mixmatch.models.base import Network
from mixmatch.settings import NonNegative, Settings


class WeakToStrongSettings(Settings):
    """The settings that FixMatch and its successors share."""

    unlabeled_ratio: Annotated[int, Field(ge=1, le=64)] = Field(
        7, description="mu, unlabeled images for each labeled one"
    )
    lambda_u: NonNegative = Field(1, description="weight of the unlabeled loss")


W = TypeVar("W", bound=WeakToStrongSettings)


class WeakToStrong(Method[W]):
    """Weak views label strong ones. Subclasses give each pseudo-label a weight, the sum of its row of targets."""

    loss_names: tuple[str, ...] = ("loss_labeled", "loss_unlabeled", "label_weight")
    descriptions: ClassVar = {
        "loss_labeled": "cross-entropy on labeled images",
        "loss_unlabeled": "weighted cross-entropy of strong views against the labels of weak views",
        "label_weight": "mean weight of the pseudo-labels; with a threshold, the share above it (USB: util_ratio)",
    }
    num_views = 1
    labeled_as_unlabeled = True  # footnote 2
    num_strong_views = 1
    collapse_hint = "start again with a lower train.lr or more labels"

    def __init__(self, settings: W, context: MethodContext) -> None:
        super().__init__(settings, context)
        self.unlabeled_ratio = settings.unlabeled_ratio

    def forward_equivalents(self) -> int:
        """Count labeled images, weak and strong views, which are one forward and backward pass."""
        return 3 * (1 + 2 * self.unlabeled_ratio) * self.context.batch_size

    def pseudo_label_weights(self, guesses: Tensor, index: Tensor) -> Tensor:
        """Return the weights (M,) in [0, 1] of pseudo-labels, and update the state if there is any.

        Args:
            guesses: (M, C), predictions on weak views.
            index: (M,) int64, which training images they are.
        """
        raise NotImplementedError

    def make_examples(self, networks: Networks, batch: Batch, random: None) -> Examples:
        """Put labeled images, weak and strong views into one batch."""
        return Examples(torch.cat([batch.x, batch.u[0], batch.u_strong[0]]), batch.p, extra=batch.u_index)

    def loss(self, network: Network, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Label strong views with the most likely class of the weak views; return the loss of equations 3 and 4."""
        size, num_unlabeled = len(examples.targets), self.unlabeled_ratio * len(examples.targets)
        logits = network(examples.images).to(examples.targets.dtype)
        labeled, weak, strong = logits.split([size, num_unlabeled, num_unlabeled])
        guesses = weak.detach().softmax(dim=1)
        weights = self.pseudo_label_weights(guesses, examples.extra)
        labels = weights[:, None] * one_hot(guesses.argmax(dim=1), guesses.shape[1])
        terms = {
            "loss_labeled": soft_cross_entropy(labeled, examples.targets),
            "loss_unlabeled": soft_cross_entropy(strong, labels),
            "label_weight": weights.mean(),
        }
        total = terms["loss_labeled"] + self.settings.lambda_u * terms["loss_unlabeled"]
        extra, extra_terms = self.extra_loss(strong, weights)
        return Loss(total + extra, terms | extra_terms, guesses)

    def extra_loss(self, strong: Tensor, weights: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return what a subclass adds to the loss, and its terms.

        Args:
            strong: (M, C), logits of strong views.
            weights: (M,), from ``pseudo_label_weights``.
        """
        return 0.0, {}


class FixMatchSettings(WeakToStrongSettings):
    """The settings, named as in the paper."""

    threshold: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="tau, minimum confidence of a label")


class FixMatch(WeakToStrong[FixMatchSettings]):
    """A fixed threshold: labels count 1 above it, 0 below."""

    settings_type = FixMatchSettings

    def pseudo_label_weights(self, guesses: Tensor, index: Tensor) -> Tensor:
        """Return 1 for confident predictions, else 0."""
        return (guesses.amax(dim=1) >= self.settings.threshold).to(guesses.dtype)
