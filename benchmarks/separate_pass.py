"""FixMatch, FreeMatch and SoftMatch that predict weak views in a pass of their own, instead of in one batch.

    python3 main.py --import benchmarks/separate_pass.py method=freematch_separate

A step costs 31 forward equivalents per labeled image instead of 45, with mu = 7: no gradient flows through weak views,
which do not share BatchNorm's batch statistics with the other images.
"""

import torch
from torch import Tensor

from mixmatch.methods import METHODS
from mixmatch.methods.base import Batch, Examples, Loss, Networks
from mixmatch.methods.fixmatch import FixMatch, WeakToStrong
from mixmatch.methods.freematch import FreeMatch
from mixmatch.methods.losses import one_hot, soft_cross_entropy
from mixmatch.methods.mixmatch import guess_labels
from mixmatch.methods.softmatch import SoftMatch
from mixmatch.models.base import Network


class SeparatePass(WeakToStrong):  # type: ignore[type-arg]
    """Guesses before the loss."""

    def forward_equivalents(self) -> int:
        """Count weak views predicted, labeled images and strong views trained on."""
        return (self.unlabeled_ratio + 3 * (1 + self.unlabeled_ratio)) * self.context.batch_size

    def make_examples(self, networks: Networks, batch: Batch, random: None) -> Examples:
        """Label strong views with the most likely class of the weak views."""
        guesses = guess_labels(networks.current, batch.u)
        labels = self.pseudo_label_weights(guesses)[:, None] * one_hot(guesses.argmax(dim=1), guesses.shape[1])
        return Examples(torch.cat([batch.x, batch.u_strong[0]]), torch.cat([batch.p, labels]), guesses)

    def loss(self, network: Network, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Return the loss of labeled images and strong views."""
        size, targets = self.context.batch_size, examples.targets
        logits = network(examples.images).to(targets.dtype)
        weights = targets[size:].sum(dim=1)
        terms = {
            "loss_labeled": soft_cross_entropy(logits[:size], targets[:size]),
            "loss_unlabeled": soft_cross_entropy(logits[size:], targets[size:]),
            "label_weight": weights.mean(),
        }
        extra, extra_terms = self.extra_loss(logits[size:], weights)
        total = terms["loss_labeled"] + self.settings.lambda_u * terms["loss_unlabeled"] + extra
        return Loss(total, terms | extra_terms, examples.guesses)


for base in (FixMatch, FreeMatch, SoftMatch):
    name = base.__name__.lower() + "_separate"
    METHODS[name] = type(base.__name__ + "Separate", (SeparatePass, base), {})
