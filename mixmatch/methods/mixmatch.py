"""MixMatch: guess labels, sharpen them, mix labeled and unlabeled examples.

Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019, arXiv:1905.02249.
B is the batch size, K the number of views, C the number of classes.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from mixmatch.methods.base import Batch, Examples, Loss, Method, MethodContext, Networks
from mixmatch.methods.losses import soft_cross_entropy, squared_error
from mixmatch.methods.mixup import MixUpMode, MixUpParams, interleave_indices, mixup, sample_mixup
from mixmatch.models.base import Network
from mixmatch.settings import Alpha, CountOrZero, NonNegative, Settings


def guess_labels(network: Network, u: Tensor) -> Tensor:
    """Average the predictions over the K views of each unlabeled image (equation 6).

    The network runs in training mode without gradient. As in the authors' code, BatchNorm treats each of the K views
    as a batch of its own and does not update its running statistics.

    Args:
        network: predicts.
        u: (K, M, c, h, w), the views.

    Returns:
        (M, C), rows sum to 1.
    """
    with torch.no_grad():
        logits = network(u.flatten(0, 1), num_batches=len(u), update_statistics=False)
        predictions: Tensor = logits.to(u.dtype).softmax(dim=1).unflatten(0, u.shape[:2])
        return predictions.mean(dim=0)


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """Raise to the power 1/T and normalize (equation 7): T = 1 changes nothing, T -> 0 gives one-hot labels.

    Args:
        p: (n, C), rows are distributions.
        temperature: T > 0.
    """
    # Logarithms, since powers of small probabilities underflow.
    return (p.clamp_min(torch.finfo(p.dtype).tiny).log() / temperature).softmax(dim=1)


def ramp_up(step: int, maximum: float, ramp_up_steps: int) -> float:
    """Return a weight that rises linearly from 0 to ``maximum`` over ``ramp_up_steps`` steps, then stays."""
    return maximum * min(1.0, step / ramp_up_steps) if ramp_up_steps else maximum


class MixMatchSettings(Settings):
    """The settings, named as in the paper."""

    num_views: Annotated[int, Field(ge=1, le=64)] = Field(2, description="K, augmented views of each unlabeled image")
    temperature: Annotated[float, Field(ge=0.01, le=100)] = Field(0.5, description="T of sharpening; 1: no sharpening")
    alpha: Alpha = Field(0.75, description="MixUp samples lambda from Beta(alpha, alpha)")
    lambda_u: NonNegative = Field(75, description="weight of the unlabeled loss after the ramp-up")
    ramp_up_steps: CountOrZero | None = Field(
        16000, description="steps over which lambda_u rises linearly from 0; 0: none; null: the whole run"
    )
    mixup: MixUpMode = Field(
        "joint", description="what is mixed: joint (all), labeled only, unlabeled only, separate or none"
    )
    guess_with_ema: bool = Field(False, description="guess labels with the EMA weights instead of the current ones")


class MixMatch(Method[MixMatchSettings]):
    """Averaged and sharpened guesses, and MixUp of labeled and unlabeled images: algorithm 1 of the paper."""

    settings_type = MixMatchSettings
    loss_names = ("loss_labeled", "loss_unlabeled")
    descriptions: ClassVar = {
        "loss_labeled": "cross-entropy on mixed labeled images",
        "loss_unlabeled": "squared error of probabilities on mixed unlabeled images, before the weight lambda_u",
        "lambda_u": "weight of loss_unlabeled",
    }
    collapse_hint = "start again with a lower mixmatch.lambda_u or a longer mixmatch.ramp_up_steps"

    def __init__(self, settings: MixMatchSettings, context: MethodContext) -> None:
        super().__init__(settings, context)
        self.num_views = settings.num_views
        self.num_batches = settings.num_views + 1
        self.ramp_up_steps = context.num_steps if settings.ramp_up_steps is None else settings.ramp_up_steps
        self.interleave = interleave_indices(context.batch_size, self.num_batches, context.device)

    @classmethod
    def depends_on_num_steps(cls, settings: MixMatchSettings) -> bool:
        """Return whether lambda_u rises over the whole run."""
        return settings.ramp_up_steps is None

    def forward_equivalents(self) -> int:
        """Count K views guessed, and K + 1 batches trained on."""
        return (self.num_views + 3 * self.num_batches) * self.context.batch_size

    def schedules(self, step: int) -> dict[str, float]:
        """Return lambda_u."""
        return {"lambda_u": ramp_up(step, self.settings.lambda_u, self.ramp_up_steps)}

    def sample(self, generator: Generator) -> MixUpParams:
        """Sample MixUp of the (K + 1) * B examples."""
        size = self.context.batch_size
        return sample_mixup(self.num_batches * size, self.settings.alpha, generator, self.settings.mixup, size)

    def make_examples(self, networks: Networks, batch: Batch, random: MixUpParams) -> Examples:
        """Guess, sharpen, mix (algorithm 1): X' are the first B examples, U' the other K * B."""
        guess = guess_labels(networks.ema if self.settings.guess_with_ema else networks.current, batch.u)
        q = sharpen(guess, self.settings.temperature)
        images = torch.cat([batch.x, batch.u.flatten(0, 1)])
        targets = torch.cat([batch.p, q.repeat(self.num_views, 1)])
        return Examples(mixup(images, random), mixup(targets, random), q)

    def loss(self, network: Network, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Return L_X + lambda_u * L_U (equations 2 to 5).

        One forward pass over all examples, in which BatchNorm sees the authors' K + 1 interleaved batches, and only the
        first updates the running statistics.
        """
        size = self.context.batch_size
        logits = network(examples.images[self.interleave], num_batches=self.num_batches)[self.interleave]
        labeled = soft_cross_entropy(logits[:size], examples.targets[:size])
        unlabeled = squared_error(logits[size:], examples.targets[size:])
        terms = {"loss_labeled": labeled, "loss_unlabeled": unlabeled}
        return Loss(labeled + schedules["lambda_u"] * unlabeled, terms, examples.guesses)
