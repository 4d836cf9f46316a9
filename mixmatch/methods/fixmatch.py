"""FixMatch: a weak view labels a strong one, where the network is sure enough of it.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv:2001.07685. What differs from the authors' code: labels are guessed in a pass of their own, without gradient, so
that weak views are no part of the batch by whose statistics the others are normalized.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mixmatch.data.pool import Batch, one_hot
from mixmatch.methods.base import Examples, Loss, Method, MethodContext, Networks
from mixmatch.methods.mixmatch import guess_labels, labeled_loss
from mixmatch.settings import NonNegative, Settings


class WeakToStrongSettings(Settings):
    """The settings of every method in which a weak view labels a strong one."""

    unlabeled_ratio: Annotated[int, Field(ge=1, le=64)] = Field(
        7, description="mu, unlabeled images for each labeled one"
    )
    lambda_u: NonNegative = Field(1, description="weight of the unlabeled loss")


class FixMatchSettings(WeakToStrongSettings):
    """The method's settings, named as in the paper."""

    threshold: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="tau, the least confidence of a label")


class FixMatch(Method):
    """Weak views label strong ones, each label with a weight: here 1 from a threshold of confidence on, 0 below.

    The weight of a label is the sum of its row of targets.
    """

    settings_type: ClassVar[type[Settings]] = FixMatchSettings
    parts = ("loss_labeled", "loss_unlabeled", "label_weight")
    descriptions: ClassVar = {
        "loss_labeled": "cross-entropy on labeled images",
        "loss_unlabeled": "cross-entropy of strong views to the labels of weak ones, by the weights of these",
        "label_weight": "mean weight of the labels guessed",
    }
    num_views = 1
    num_strong_views = 1
    collapse_hint = "start again with a lower train.lr or more labels"

    def __init__(self, settings: WeakToStrongSettings, task: MethodContext) -> None:
        super().__init__(settings, task)
        self.unlabeled_ratio = settings.unlabeled_ratio

    def passes(self) -> int:
        """Guess weak views, train on labeled and strong ones, see ``Method.passes``."""
        return (self.unlabeled_ratio + 3 * (1 + self.unlabeled_ratio)) * self.task.batch_size

    def weigh(self, guesses: Tensor) -> Tensor:
        """Return the weight of each label.

        Args:
            guesses: (M, C) predictions on weak views.

        Returns:
            (M,) in [0, 1].
        """
        return (guesses.amax(dim=1) >= self.settings.threshold).to(guesses.dtype)

    def make_examples(self, networks: Networks, batch: Batch, draws: tuple[Tensor, ...]) -> Examples:
        """Label strong views by the likeliest classes of weak ones, see ``Method.make_examples``."""
        guesses = guess_labels(networks.current, batch.u)
        labels = self.weigh(guesses)[:, None] * one_hot(guesses.argmax(dim=1), guesses.shape[1])
        return Examples(torch.cat([batch.x, batch.s[0]]), torch.cat([batch.p, labels]), guesses)

    def loss(self, network: nn.Module, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Cross-entropy on labeled images and on strong views (equations 3 and 4), see ``Method.loss``."""
        return self.loss_of(network(examples.images), examples.targets)

    def loss_of(self, logits: Tensor, targets: Tensor) -> Loss:
        """Return the loss of logits (B + M, C), of which the labeled images' come first."""
        logits, size = logits.to(targets.dtype), self.task.batch_size
        labeled = labeled_loss(logits[:size], targets[:size])
        unlabeled = labeled_loss(logits[size:], targets[size:])
        parts = {"loss_labeled": labeled, "loss_unlabeled": unlabeled, "label_weight": targets[size:].sum(dim=1).mean()}
        return Loss(labeled + self.settings.lambda_u * unlabeled, parts)
