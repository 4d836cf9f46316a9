"""MixMatch in the paper's order, as pure functions of tensors: guess, sharpen, mix, loss.

Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019, arXiv:1905.02249.
B is the batch size, K the number of views, C the number of classes. ``MixMatch`` at the end puts them together.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from mixmatch.data.pool import Batch
from mixmatch.methods.base import Examples, Loss, Method, MethodContext, Networks
from mixmatch.settings import Alpha, CountOrZero, NonNegative, Settings


def guess_labels(model: nn.Module, u: Tensor) -> Tensor:
    """Average the predictions over the K views of each unlabeled image (equation 6 of the paper).

    The model runs in training mode without gradient. As in the authors' code, each of the K views is a
    batch of its own to BatchNorm, and none moves the running statistics.

    Args:
        model: called as ``model(images, num_batches, update_statistics)``.
        u: (K, B, c, h, w), the views.

    Returns:
        q-bar: (B, C), rows sum to 1.
    """
    with torch.no_grad():
        logits = model(u.flatten(0, 1), num_batches=len(u), update_statistics=False)
        return logits.to(u.dtype).softmax(dim=1).unflatten(0, u.shape[:2]).mean(dim=0)


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """Raise to the power 1/T and normalize (equation 7): T = 1 changes nothing, T -> 0 gives one-hot.

    Computed from logarithms relative to the largest entry, so that no power underflows.

    Args:
        p: (n, C), rows are distributions.
        temperature: T > 0.
    """
    return (p.clamp_min(torch.finfo(p.dtype).tiny).log() / temperature).softmax(dim=1)


class Mixing(NamedTuple):
    """What MixUp draws: for each of the n examples the partner it meets and the share it keeps."""

    partner: Tensor  # (n,) int64, the shuffle: example i is mixed with example partner[i]
    share: Tensor  # (n,) float32 in [0.5, 1], lambda' = max(lambda, 1 - lambda), one per example


class MixingDraws(NamedTuple):
    """The random numbers of a Mixing of n examples."""

    gamma: Tensor  # (2, n), from Gamma(alpha + 1)
    uniform: Tensor  # (2, n), in [0, 1)
    order: Tensor  # (n,), in [0, 1), whose ranks are the shuffle


def draw_mixing(n: int, alpha: float, generator: Generator) -> MixingDraws:
    """Draw what the mixing of n examples with lambda ~ Beta(alpha, alpha) needs, where ``generator`` is."""
    device = generator.device
    concentration = torch.full((2, n), alpha + 1, device=device)
    gamma = torch._standard_gamma(concentration, generator=generator)
    uniform = torch.rand((2, n), generator=generator, device=device)
    return MixingDraws(gamma, uniform, torch.rand(n, generator=generator, device=device))


def make_mixing(draws: MixingDraws, mode: str, batch_size: int, alpha: float) -> Mixing:
    """Turn draws into shuffle and lambdas (equations 8 and 9, and the ablations of the paper's table 4).

    Args:
        draws: from ``draw_mixing`` with the same alpha; the first examples are the labeled ones.
        mode: ``joint`` shuffles over the union of X-hat and U-hat; ``separate`` each by itself; ``labeled`` and
            ``unlabeled`` mix only the one, by itself, and leave the other (lambda' = 1); ``none`` mixes nothing.
        batch_size: B, how many are labeled.
        alpha: lambda ~ Beta(alpha, alpha).
    """
    share, order = fold_shares(draws, alpha), draws.order
    labeled = torch.arange(len(order), device=order.device) < batch_size
    if mode != "joint":
        order = order + ~labeled  # sorted, the labeled stay in front: each part is shuffled by itself
    if mode in ("unlabeled", "none"):
        share = torch.where(labeled, 1.0, share)
    if mode in ("labeled", "none"):
        share = torch.where(labeled, share, 1.0)
    return Mixing(order.argsort(), share)


def fold_shares(draws: MixingDraws, alpha: float) -> Tensor:
    """Return lambda' = max(lambda, 1 - lambda), lambda ~ Beta(alpha, alpha) (equations 8 and 9): (n,) in [0.5, 1]."""
    # lambda = a / (a + b) with a, b ~ Gamma(alpha). Gamma(alpha) is Gamma(alpha + 1) * U^(1 / alpha), which underflows
    # for small alpha; its logarithm does not.
    log_a, log_b = draws.gamma.log() + (1 - draws.uniform).log() / alpha
    return (log_a - log_b).abs().sigmoid()


def mix(values: Tensor, mixing: Mixing) -> Tensor:
    """Mix each example with its partner (equations 10 and 11): lambda' * v + (1 - lambda') * v[partner].

    Args:
        values: (n, ...) images or label distributions.
        mixing: the same for images and labels.
    """
    share = mixing.share.view(-1, *[1] * (values.dim() - 1))
    return share * values + (1 - share) * values[mixing.partner]


def mixmatch(model: nn.Module, x: Tensor, p: Tensor, u: Tensor, temperature: float, mixing: Mixing) -> Examples:
    """Algorithm 1 of the paper: from a labeled and an unlabeled batch to X' and U'.

    Args:
        model: guesses the labels; the current weights, or the EMA's (an ablation).
        x: (B, c, h, w), one view of each labeled image.
        p: (B, C), the labels as distributions.
        u: (K, B, c, h, w), K views of each unlabeled image.
        temperature: T of sharpening.
        mixing: from ``make_mixing``.

    Returns:
        (K + 1) * B examples, of which X' is the first B and U' the others, and q, one guess for all views of an image.
    """
    q = sharpen(guess_labels(model, u), temperature)
    images = torch.cat([x, u.flatten(0, 1)])
    targets = torch.cat([p, q.repeat(len(u), 1)])
    return Examples(mix(images, mixing), mix(targets, mixing), q)


def interleave_order(batch_size: int, num_batches: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the authors' interleaving as a permutation of ``num_batches`` batches that lie one after the other.

    Batch 0 (X') is cut into ``num_batches`` slices, the last ones longer by one where they don't divide evenly,
    and swaps its slice i with that of batch i: each batch then holds labeled and unlabeled examples, and the
    first, which alone moves BatchNorm's running statistics, some of every batch. Applied twice it is the identity.

    Returns:
        (num_batches * batch_size,) int64.
    """
    order = torch.arange(num_batches * batch_size, device=device).view(num_batches, batch_size)
    short, longer = divmod(batch_size, num_batches)
    start = short
    for i in range(1, num_batches):
        end = start + short + (i >= num_batches - longer)
        order[0, start:end] += i * batch_size
        order[i, start:end] -= i * batch_size
        start = end
    return order.flatten()


def labeled_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L_X, the mean cross-entropy against soft labels (equation 3): two tensors (n, C) to a scalar."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def unlabeled_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L_U, the squared distance of probabilities, mean over examples and classes (equation 4): (n, C) to a scalar."""
    return (logits.softmax(dim=1) - targets).square().mean()


def mixmatch_loss(model: nn.Module, mixed: Examples, batch_size: int, interleave: Tensor, lambda_u: Tensor) -> Loss:
    """L = L_X + lambda_U * L_U (equation 5).

    One pass over all (K + 1) * B examples, which BatchNorm sees as K + 1 interleaved batches, of which the
    first moves the running statistics: what the authors' code does in K + 1 passes.

    Args:
        model: called as ``model(images, num_batches, update_statistics)``.
        mixed: from ``mixmatch``.
        batch_size: B.
        interleave: from ``interleave_order(B, K + 1)``.
        lambda_u: scalar tensor, so that a recorded step can be given another.
    """
    logits = model(mixed.images[interleave], num_batches=len(mixed.images) // batch_size, update_statistics=True)
    logits = logits.to(mixed.targets.dtype)[interleave]  # its own inverse
    labeled = labeled_loss(logits[:batch_size], mixed.targets[:batch_size])
    unlabeled = unlabeled_loss(logits[batch_size:], mixed.targets[batch_size:])
    return Loss(labeled + lambda_u * unlabeled, {"loss_labeled": labeled, "loss_unlabeled": unlabeled})


def ramp_up(step: int, maximum: float, ramp_up_steps: int) -> float:
    """lambda_U after ``step`` completed steps: linear from 0 to ``maximum`` over ``ramp_up_steps``, then constant."""
    return maximum * min(1.0, step / ramp_up_steps) if ramp_up_steps else maximum


class MixMatchSettings(Settings):
    """The method's settings, named as in the paper."""

    num_views: Annotated[int, Field(ge=1, le=64)] = Field(2, description="K, augmented views per unlabeled image")
    temperature: Annotated[float, Field(ge=0.01, le=100)] = Field(0.5, description="T of sharpening; 1: no sharpening")
    alpha: Alpha = Field(0.75, description="MixUp draws lambda from Beta(alpha, alpha)")
    lambda_u: NonNegative = Field(75, description="weight of the unlabeled loss after the ramp-up")
    ramp_up_steps: CountOrZero | None = Field(
        16000, description="steps over which lambda_u rises linearly from 0; null: all of the run"
    )
    mixup: Literal["joint", "labeled", "unlabeled", "separate", "none"] = Field(
        "joint",
        description="what is mixed: joint (all), labeled alone, unlabeled alone, separate (each by itself) or none",
    )
    guess_with_ema: bool = Field(False, description="guess labels with the EMA weights instead of the current ones")


class MixMatch(Method):
    """The step of the paper: algorithm 1, then the loss of its output."""

    settings_type = MixMatchSettings
    parts = ("loss_labeled", "loss_unlabeled")
    descriptions: ClassVar = {
        "loss_labeled": "cross-entropy on mixed labeled images",
        "loss_unlabeled": "squared distance of probabilities to mixed guesses, before it is weighted by lambda_u",
        "lambda_u": "weight of loss_unlabeled",
    }
    collapse_hint = "start again with a lower mixmatch.lambda_u or a longer mixmatch.ramp_up_steps"

    def __init__(self, settings: MixMatchSettings, task: MethodContext) -> None:
        super().__init__(settings, task)
        self.num_views = settings.num_views
        self.ramp_up_steps = task.steps if settings.ramp_up_steps is None else settings.ramp_up_steps
        self.interleave = interleave_order(task.batch_size, settings.num_views + 1, task.device)

    @classmethod
    def depends_on_num_steps(cls, settings: MixMatchSettings) -> bool:
        """Return whether lambda_U rises over all of the run."""
        return settings.ramp_up_steps is None

    def passes(self) -> int:
        """Guess K views, train on K + 1 batches, see ``Method.passes``."""
        return (self.num_views + 3 * (self.num_views + 1)) * self.task.batch_size

    def schedules(self, step: int) -> dict[str, float]:
        """Return lambda_U of the next step."""
        return {"lambda_u": ramp_up(step, self.settings.lambda_u, self.ramp_up_steps)}

    def draw(self, generator: Generator) -> MixingDraws:
        """Draw the mixing of (K + 1) * B examples, see ``Method.draw``."""
        return draw_mixing((self.num_views + 1) * self.task.batch_size, self.settings.alpha, generator)

    def make_examples(self, networks: Networks, batch: Batch, draws: MixingDraws) -> Examples:
        """Guess, sharpen and mix, see ``Method.make_examples``."""
        mixing = make_mixing(draws, self.settings.mixup, self.task.batch_size, self.settings.alpha)
        guesser = networks.averaged if self.settings.guess_with_ema else networks.current
        return mixmatch(guesser, batch.x, batch.p, batch.u, self.settings.temperature, mixing)

    def loss(self, network: nn.Module, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """L_X and L_U of the mixed batch, see ``Method.loss``."""
        return mixmatch_loss(network, examples, self.task.batch_size, self.interleave, schedules["lambda_u"])
