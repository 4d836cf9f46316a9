"""ReMixMatch: MixMatch with guesses brought to the labeled class shares, and learned on strong views.

Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring", ICLR
2020, arXiv:1911.09785. What differs from the authors' code: strong views are RandAugment's instead of CTAugment's, the
running mean of predictions is exponential over as many batches, labels are guessed in a pass of their own, and what
tells rotations apart starts at zero.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from mixmatch.data.pool import Batch
from mixmatch.methods.base import Examples, Loss, Method, MethodContext, Networks
from mixmatch.methods.mixmatch import (
    MixingDraws,
    draw_mixing,
    guess_labels,
    interleave_order,
    labeled_loss,
    make_mixing,
    mix,
    ramp_up,
    sharpen,
)
from mixmatch.settings import Alpha, Count, CountOrZero, NonNegative, Settings

QUARTERS = 4


class ReMixMatchSettings(Settings):
    """The method's settings, named as in the paper."""

    num_strong_views: Annotated[int, Field(ge=1, le=64)] = Field(8, description="K, strong views per unlabeled image")
    temperature: Annotated[float, Field(ge=0.01, le=100)] = Field(0.5, description="T of sharpening")
    alpha: Alpha = Field(0.75, description="MixUp draws lambda from Beta(alpha, alpha)")
    lambda_u: NonNegative = Field(1.5, description="weight of the mixed unlabeled loss after the ramp-up")
    lambda_strong: NonNegative = Field(0.5, description="weight of the loss of an unmixed strong view after it")
    ramp_up_steps: CountOrZero | None = Field(
        16000, description="steps over which both rise linearly from 0; null: all of the run"
    )
    lambda_rotation: NonNegative = Field(
        0,
        description="weight of the loss of telling by how many quarters a view is turned; 0: none",
    )
    alignment_window: Count = Field(128, description="batches over which predictions are averaged, to align guesses by")


class ReMixMatch(Method):
    """Algorithm 1 of the paper.

    State: the running mean of predictions. Head: from features to quarters of a turn, if these are learned.
    """

    settings_type = ReMixMatchSettings
    parts = ("loss_labeled", "loss_unlabeled", "loss_strong", "loss_rotation")
    descriptions: ClassVar = {
        "loss_labeled": "cross-entropy on mixed labeled images",
        "loss_unlabeled": "cross-entropy to mixed guesses, before it is weighted by lambda_u",
        "loss_strong": "cross-entropy of an unmixed strong view to its guess, before it is weighted by lambda_strong",
        "loss_rotation": "cross-entropy of the quarters by which that view is turned, before it is weighted",
        "lambda_u": "weight of loss_unlabeled",
        "lambda_strong": "weight of loss_strong",
    }
    num_views = 1
    collapse_hint = "start again with a longer remixmatch.ramp_up_steps or a lower remixmatch.lambda_u"

    def __init__(self, settings: ReMixMatchSettings, task: MethodContext) -> None:
        super().__init__(settings, task)
        self.num_strong_views = settings.num_strong_views
        self.ramp_up_steps = task.steps if settings.ramp_up_steps is None else settings.ramp_up_steps
        self.predicts_rotation = settings.lambda_rotation > 0
        self.num_batches = settings.num_strong_views + 2  # labeled, weak, strong
        self.interleave = interleave_order(task.batch_size, self.num_batches, task.device)
        count = len(task.classes)
        self.shares = task.class_shares.to(torch.get_default_dtype()).to(task.device)
        self.state = {"prediction": torch.full((count,), 1 / count, device=task.device)}
        self.parts = type(self).parts if self.predicts_rotation else type(self).parts[:-1]
        if self.predicts_rotation:
            self.head = nn.Linear(task.num_features, QUARTERS, device=task.device)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @classmethod
    def depends_on_num_steps(cls, settings: ReMixMatchSettings) -> bool:
        """Return whether the weights rise over all of the run."""
        return settings.ramp_up_steps is None

    def passes(self) -> int:
        """Guess one view, train on K + 3 batches and on one of turned views, see ``Method.passes``."""
        return (1 + 3 * (self.num_batches + 1 + self.predicts_rotation)) * self.task.batch_size

    def schedules(self, step: int) -> dict[str, float]:
        """Return the weights of the next step."""
        return {
            "lambda_u": ramp_up(step, self.settings.lambda_u, self.ramp_up_steps),
            "lambda_strong": ramp_up(step, self.settings.lambda_strong, self.ramp_up_steps),
        }

    def draw(self, generator: Generator) -> MixingDraws:
        """Draw the mixing of (K + 2) * B examples, see ``Method.draw``."""
        return draw_mixing(self.num_batches * self.task.batch_size, self.settings.alpha, generator)

    def make_examples(self, networks: Networks, batch: Batch, draws: MixingDraws) -> Examples:
        """Guess by the weak view, align, sharpen, mix all; the first strong view stands unmixed behind them."""
        predictions = guess_labels(networks.current, batch.u)
        q = sharpen(align(predictions, self.shares, self.state["prediction"]), self.settings.temperature)
        self.state["prediction"].lerp_(predictions.mean(dim=0), 1 / self.settings.alignment_window)
        images = torch.cat([batch.x, batch.u[0], batch.s.flatten(0, 1)])
        targets = torch.cat([batch.p, q.repeat(self.num_batches - 1, 1)])
        mixing = make_mixing(draws, "joint", self.task.batch_size, self.settings.alpha)
        return Examples(torch.cat([mix(images, mixing), batch.s[0]]), torch.cat([mix(targets, mixing), q]), q)

    def loss(self, network: nn.Module, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Cross-entropy of all four kinds (equation 4 and section 3.3), see ``Method.loss``."""
        size, mixed, targets = self.task.batch_size, self.num_batches * self.task.batch_size, examples.targets
        strong_augment, turns = examples.images[mixed:], self.settings.lambda_rotation
        turned = [turn(strong_augment)] if turns else []
        images = torch.cat([examples.images[:mixed][self.interleave], strong_augment, *turned])
        features = network.embed(images, num_batches=self.num_batches + 1 + len(turned))
        logits = network.dense(features[: mixed + size]).to(targets.dtype)
        mixed_logits = logits[:mixed][self.interleave]
        labeled = labeled_loss(mixed_logits[:size], targets[:size])
        unlabeled = labeled_loss(mixed_logits[size:], targets[size:mixed])
        strong = labeled_loss(logits[mixed:], targets[mixed:])
        total = labeled + schedules["lambda_u"] * unlabeled + schedules["lambda_strong"] * strong
        parts = [labeled, unlabeled, strong]
        if turns:
            quarters = torch.arange(size, device=targets.device) % QUARTERS
            rotation = F.cross_entropy(self.head(features[mixed + size :]).to(targets.dtype), quarters)
            total = total + turns * rotation
            parts.append(rotation)
        return Loss(total, dict(zip(self.parts, parts, strict=True)))


def turn(images: Tensor) -> Tensor:
    """Turn image i of (n, c, h, w) by i mod 4 quarters: which images these are is random already."""
    turned = torch.empty_like(images)
    for quarters in range(QUARTERS):
        turned[quarters::QUARTERS] = images[quarters::QUARTERS].rot90(quarters, (2, 3))
    return turned


def align(guesses: Tensor, shares: Tensor, prediction: Tensor) -> Tensor:
    """Bring guesses to the labeled class shares: Norm(q * p(y) / p~(y)) (section 3.1).

    Args:
        guesses: (n, C).
        shares: (C,) of the classes among the labeled images.
        prediction: (C,) the running mean of predictions.
    """
    aligned = guesses * (shares + 1e-6) / (prediction + 1e-6)
    return aligned / aligned.sum(dim=1, keepdim=True)
