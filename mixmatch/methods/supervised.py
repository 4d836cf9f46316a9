"""The supervised baseline: cross-entropy on the labeled images only, with or without MixUp."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor

from mixmatch.methods.base import Batch, Examples, Loss, Method, Networks
from mixmatch.methods.losses import soft_cross_entropy
from mixmatch.methods.mixup import MixUpParams, mixup, sample_mixup
from mixmatch.models.base import Network
from mixmatch.settings import Alpha, Settings


class SupervisedSettings(Settings):
    """The baseline's setting."""

    alpha: Alpha | Literal[0] = Field(0, description="MixUp of labeled images with Beta(alpha, alpha); 0: no MixUp")


class Supervised(Method[SupervisedSettings]):
    """Cross-entropy on the labeled batch."""

    settings_type = SupervisedSettings
    loss_names = ("loss_labeled",)
    descriptions: ClassVar = {"loss_labeled": "cross-entropy on labeled images"}

    def forward_equivalents(self) -> int:
        """Count the labeled batch, trained on."""
        return 3 * self.context.batch_size

    def sample(self, generator: Generator) -> MixUpParams | None:
        """Sample MixUp, if it is on."""
        return sample_mixup(self.context.batch_size, self.settings.alpha, generator) if self.settings.alpha else None

    def make_examples(self, networks: Networks, batch: Batch, random: MixUpParams | None) -> Examples:
        """Mix the labeled batch, if MixUp is on."""
        return (
            Examples(batch.x, batch.p) if random is None else Examples(mixup(batch.x, random), mixup(batch.p, random))
        )

    def loss(self, network: Network, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Return the cross-entropy."""
        labeled = soft_cross_entropy(network(examples.images), examples.targets)
        return Loss(labeled, {"loss_labeled": labeled})
