"""The supervised baseline: cross-entropy on the labeled images alone, with or without MixUp among them."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor, nn

from mixmatch.data.pool import Batch
from mixmatch.methods.base import Examples, Loss, Method, Networks
from mixmatch.methods.mixmatch import draw_mixing, labeled_loss, make_mixing, mix
from mixmatch.settings import Alpha, Settings


class SupervisedSettings(Settings):
    """The baseline's own setting."""

    alpha: Alpha | Literal[0] = Field(
        0, description="MixUp between labeled images with Beta(alpha, alpha); 0: no MixUp"
    )


class Supervised(Method):
    """L_X of the labeled batch, and no unlabeled images."""

    settings_type = SupervisedSettings
    parts = ("loss_labeled",)
    descriptions: ClassVar = {"loss_labeled": "cross-entropy on labeled images"}

    def passes(self) -> int:
        """Train on the labeled batch, see ``Method.passes``."""
        return 3 * self.task.batch_size

    def draw(self, generator: Generator) -> tuple[Tensor, ...]:
        """Draw the mixing of B examples, if the settings ask for it, see ``Method.draw``."""
        return draw_mixing(self.task.batch_size, self.settings.alpha, generator) if self.settings.alpha else ()

    def make_examples(self, networks: Networks, batch: Batch, draws: tuple[Tensor, ...]) -> Examples:
        """Mix the labeled batch if the settings say so, see ``Method.make_examples``."""
        if not self.settings.alpha:
            return Examples(batch.x, batch.p)
        mixing = make_mixing(draws, "joint", self.task.batch_size, self.settings.alpha)
        return Examples(mix(batch.x, mixing), mix(batch.p, mixing))

    def loss(self, network: nn.Module, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Cross-entropy, see ``Method.loss``."""
        labeled = labeled_loss(network(examples.images).to(examples.targets.dtype), examples.targets)
        return Loss(labeled, {"loss_labeled": labeled})
