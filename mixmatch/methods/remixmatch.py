"""ReMixMatch: MixMatch with distribution alignment and augmentation anchoring.

Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring", ICLR
2020, arXiv:1911.09785. Strong views come from RandAugment and Cutout instead of CTAugment; docs/methods.md lists what
else differs from the authors' code.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from mixmatch.methods.base import Batch, Examples, Loss, Method, MethodContext, Networks
from mixmatch.methods.losses import soft_cross_entropy
from mixmatch.methods.mixmatch import guess_labels, ramp_up, sharpen
from mixmatch.methods.mixup import MixUpParams, interleave_indices, mixup, sample_mixup
from mixmatch.models.base import Network
from mixmatch.settings import Alpha, CountOrZero, NonNegative, Settings

NUM_ROTATIONS = 4


class ReMixMatchSettings(Settings):
    """The settings, named as in the paper."""

    num_strong_views: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="K, strong views of each unlabeled image"
    )
    temperature: Annotated[float, Field(ge=0.01, le=100)] = Field(0.5, description="T of sharpening")
    alpha: Alpha = Field(0.75, description="MixUp samples lambda from Beta(alpha, alpha)")
    lambda_u: NonNegative = Field(1.5, description="weight of the mixed unlabeled loss after the ramp-up")
    lambda_strong: NonNegative = Field(
        0.5, description="weight of the loss of one unmixed strong view after the ramp-up"
    )
    ramp_up_steps: CountOrZero | None = Field(
        16000, description="steps over which both weights rise linearly from 0; 0: none; null: the whole run"
    )
    lambda_rotation: NonNegative = Field(0, description="weight of the rotation loss; 0: none")
    alignment_window: Annotated[int, Field(ge=1, le=100_000)] = Field(
        128, description="number of most recent batches whose mean prediction is used for alignment"
    )
    guess_with_ema: bool = Field(False, description="guess labels with the EMA weights instead of the current ones")


class ReMixMatch(Method[ReMixMatchSettings]):
    """MixMatch with distribution alignment and strong views: algorithm 1 of the paper.

    State: mean predictions of the last batches. Head: features to rotations, if predicted.
    """

    settings_type = ReMixMatchSettings
    loss_names: tuple[str, ...] = ("loss_labeled", "loss_unlabeled", "loss_strong", "loss_rotation")
    descriptions: ClassVar = {
        "loss_labeled": "cross-entropy on mixed labeled images",
        "loss_unlabeled": "cross-entropy on mixed unlabeled images, before the weight lambda_u",
        "loss_strong": "cross-entropy of one unmixed strong view, before the weight lambda_strong",
        "loss_rotation": "cross-entropy of the predicted rotation of that view, before its weight",
        "lambda_u": "weight of loss_unlabeled",
        "lambda_strong": "weight of loss_strong",
    }
    num_views = 1
    strong_labeled = True  # algorithm 1, line 3
    labeled_as_unlabeled = True
    collapse_hint = "start again with a longer remixmatch.ramp_up_steps or a lower remixmatch.lambda_u"

    def __init__(self, settings: ReMixMatchSettings, context: MethodContext) -> None:
        super().__init__(settings, context)
        if not settings.guess_with_ema:
            self.collapse_hint = "start again with remixmatch.guess_with_ema=true, or a longer remixmatch.ramp_up_steps"
        self.num_strong_views = settings.num_strong_views
        self.num_batches = settings.num_strong_views + 2  # labeled, weak, strong
        self.ramp_up_steps = context.num_steps if settings.ramp_up_steps is None else settings.ramp_up_steps
        self.interleave = interleave_indices(context.batch_size, self.num_batches, context.device)
        self.frequencies = context.class_frequencies.to(torch.get_default_dtype()).to(context.device)
        window, count = settings.alignment_window, len(context.classes)
        self.state = {"predictions": torch.full((window, count), 1 / count, device=context.device)}
        self.predicts_rotation = settings.lambda_rotation > 0
        if self.predicts_rotation:
            self.head = nn.Linear(context.num_features, NUM_ROTATIONS, device=context.device)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        else:
            self.loss_names = type(self).loss_names[:-1]

    @classmethod
    def depends_on_num_steps(cls, settings: ReMixMatchSettings) -> bool:
        """Return whether the weights rise over the whole run."""
        return settings.ramp_up_steps is None

    def forward_equivalents(self) -> int:
        """Count one view guessed, K + 3 batches trained on, and one of rotated views."""
        return (1 + 3 * (self.num_batches + 1 + self.predicts_rotation)) * self.context.batch_size

    def schedules(self, step: int) -> dict[str, float]:
        """Return the weights of the two unlabeled losses."""
        return {
            "lambda_u": ramp_up(step, self.settings.lambda_u, self.ramp_up_steps),
            "lambda_strong": ramp_up(step, self.settings.lambda_strong, self.ramp_up_steps),
        }

    def sample(self, generator: Generator) -> MixUpParams:
        """Sample MixUp of the (K + 2) * B examples."""
        return sample_mixup(self.num_batches * self.context.batch_size, self.settings.alpha, generator)

    def make_examples(self, networks: Networks, batch: Batch, random: MixUpParams) -> Examples:
        """Guess with the weak view, align, sharpen, mix; one unmixed strong view follows the mixed examples."""
        guesser = networks.ema if self.settings.guess_with_ema else networks.current
        predictions, last = guess_labels(guesser, batch.u), self.state["predictions"]
        q = sharpen(align(predictions, self.frequencies, last.mean(dim=0)), self.settings.temperature)
        last.copy_(torch.cat([last[1:], predictions.mean(dim=0, keepdim=True)]))
        images = torch.cat([batch.x, batch.u[0], batch.u_strong.flatten(0, 1)])
        targets = torch.cat([batch.p, q.repeat(self.num_batches - 1, 1)])
        return Examples(
            torch.cat([mixup(images, random), batch.u_strong[0]]), torch.cat([mixup(targets, random), q]), q
        )

    def loss(self, network: Network, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Return the sum of the four cross-entropies (equation 4 and section 3.3)."""
        size, targets = self.context.batch_size, examples.targets
        num_mixed = self.num_batches * size
        strong = examples.images[num_mixed:]
        rotated = [rotate_by_position(strong)] if self.predicts_rotation else []
        images = torch.cat([examples.images[:num_mixed][self.interleave], strong, *rotated])
        features = network.embed(images, num_batches=self.num_batches + 1 + len(rotated))
        logits = network.dense(features[: num_mixed + size])
        mixed = logits[:num_mixed][self.interleave]
        terms = {
            "loss_labeled": soft_cross_entropy(mixed[:size], targets[:size]),
            "loss_unlabeled": soft_cross_entropy(mixed[size:], targets[size:num_mixed]),
            "loss_strong": soft_cross_entropy(logits[num_mixed:], targets[num_mixed:]),
        }
        total = (
            terms["loss_labeled"]
            + schedules["lambda_u"] * terms["loss_unlabeled"]
            + schedules["lambda_strong"] * terms["loss_strong"]
        )
        if self.predicts_rotation:
            rotation = torch.arange(size, device=targets.device) % NUM_ROTATIONS
            rotation_logits = self.head(features[num_mixed + size :]).to(targets.dtype)
            terms["loss_rotation"] = F.cross_entropy(rotation_logits, rotation)
            total = total + self.settings.lambda_rotation * terms["loss_rotation"]
        return Loss(total, terms, examples.guesses)


def rotate_by_position(images: Tensor) -> Tensor:
    """Rotate image i of (n, c, h, h) by i mod 4 times 90 degrees: the order of the images is random already."""
    rotated = torch.empty_like(images)
    for k in range(NUM_ROTATIONS):
        rotated[k::NUM_ROTATIONS] = images[k::NUM_ROTATIONS].rot90(k, (2, 3))
    return rotated


def align(guesses: Tensor, frequencies: Tensor, prediction: Tensor) -> Tensor:
    """Align guesses with the labeled class frequencies: normalize(q * p(y) / p~(y)) (section 3.1).

    Args:
        guesses: (n, C).
        frequencies: (C,) of the classes among the labeled images.
        prediction: (C,) mean of the last predictions.
    """
    aligned = guesses * (frequencies + 1e-6) / (prediction + 1e-6)
    return aligned / aligned.sum(dim=1, keepdim=True)
