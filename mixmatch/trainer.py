"""The training step: draw a batch, compute the loss of the method, update weights, decay kernels, average.

A Trainer owns everything that changes while training. What a step draws is a function of the run's seed and
the step number alone (see sampling.py), so the state to save is weights, optimiser and step.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mixmatch.augment import random_strong_views, random_views
from mixmatch.capture import capture
from mixmatch.config import Config
from mixmatch.data import ImageData
from mixmatch.errors import Diverged, UserError
from mixmatch.method import (
    Losses,
    Mixed,
    draw_mixing,
    interleave_order,
    mix,
    mixmatch,
    mixmatch_loss,
    one_hot,
    ramp_up,
    supervised_loss,
)
from mixmatch.ranks import ALONE, Ranks
from mixmatch.sampling import Split, shuffled_stream, step_seed
from models import WideResNet

# Batches are looked up this many steps ahead, so that the host is asked for them rarely.
STEPS_PER_REFILL = 256
LABELED_STREAM, UNLABELED_STREAM = 0, 1


class Trainer:
    """Model, EMA model, optimiser and step count, and the step that moves them.

    Attributes:
        step: completed training steps.
        model: the network that is trained.
        ema_model: the network with averaged weights; it shares the model's BatchNorm statistics, as in the
            authors' code. Every reported accuracy is its.
    """

    def __init__(
        self, config: Config, data: ImageData, split: Split, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        """Put the training set on ``device`` and build a network with weights drawn from ``config.seed``.

        Args:
            config: the run's; of ``train.batch_size`` images a step, each rank takes its share.
            data: the images.
            split: what they are used for.
            device: this rank's.
            ranks: the processes that train together. Each draws views and mixes among its own share, with
                BatchNorm's statistics of it; gradients and running statistics are averaged.

        Raises:
            UserError: if the config asks for what these images cannot give.
        """
        self.config = config
        self.device = device
        self.ranks = ranks
        self.step = 0
        self.batch_size, rest = divmod(config.train.batch_size, ranks.world)  # of this rank
        if rest or self.batch_size < 2:
            raise UserError(
                f"train.batch_size: {config.train.batch_size} cannot be shared by {ranks.world} processes; "
                "it must be a multiple of their number, with 2 or more for each"
            )
        self.num_classes = len(data.classes)
        self.images = data.images.to(device)
        self.labels = data.labels.to(device)
        self.original_labeled = torch.tensor(split.labeled, device=device)
        self.original_unlabeled = torch.tensor(split.unlabeled, dtype=torch.int64, device=device)
        held_out = torch.tensor(split.validation, dtype=torch.int64, device=device)
        # The images that accuracy is measured on, by name; neither is trained on, and an empty one is left out.
        self.held_out: dict[str, tuple[Tensor, Tensor]] = {}
        if len(held_out):
            self.held_out["validation"] = self.images[held_out], self.labels[held_out]
        if data.test_images is not None and data.test_labels is not None:
            self.held_out["test"] = data.test_images.to(device), data.test_labels.to(device)
        self.flip = data.flip if config.data.flip == "auto" else config.data.flip
        size, channels = data.images.shape[1], data.images.shape[3]
        self.padding = size // 8 if config.data.crop_padding == "auto" else config.data.crop_padding
        if self.padding >= size:
            raise UserError(f"data.crop_padding: must be below the image's {size} pixels, got {self.padding}")

        with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
            torch.manual_seed(config.seed)
            network = config.model
            model = WideResNet(network.depth, network.width, self.num_classes, channels, network.bn_momentum)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.model.train()
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False)
        for averaged, module in zip(self.ema_model.modules(), self.model.modules(), strict=True):
            averaged._buffers = module._buffers
        self.kernels = [p for p in self.model.parameters() if p.dim() > 1]
        self.optimizer = self._make_optimizer()
        self.interleave = interleave_order(self.batch_size, config.mixmatch.num_views + 1, device)
        self.generator = torch.Generator(device)
        # Sums over steps, in the order of _mixmatch_losses and _supervised_losses; see read_statistics.
        self.totals = torch.zeros(7 + self.num_classes if config.method == "mixmatch" else 3, device=device)

        # What the host gives a step; see _give_inputs.
        self.x_index, self.x_labels, self.u_index = torch.zeros((3, self.batch_size), dtype=torch.int64, device=device)
        self.x_pseudo = torch.zeros(self.batch_size, dtype=torch.bool, device=device)
        self.lambda_u_now, self.decay = torch.zeros(2, device=device)
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        self.use_pseudo_labels(nothing, nothing)

        self.precision = choose_precision(config.train.precision, device)
        compiling = device.type == "cuda" if config.train.compile == "auto" else config.train.compile
        self.network, self.ema_network = self.model, self.ema_model
        if compiling:
            torch.compiler.reset()  # compiled code of the runs before in this process counts towards a limit
            self.network, self.ema_network = (
                torch.compile(network, dynamic=False) for network in (self.model, self.ema_model)
            )
        self.capturing = compiling and device.type == "cuda"
        self._launch: Callable[[], None] | None = None  # a step's work on the device, made ready by the first one

    def train_step(self) -> None:
        """Do one training step. The host only gives its inputs and launches it; nothing is read back."""
        self._give_inputs()
        if self._launch is None:
            self._launch = capture(self._run_step, self.state, self.generator) if self.capturing else self._run_step
        self._launch()
        self.step += 1

    def _give_inputs(self) -> None:
        """Put on the device what sets this step apart: its images, its schedules, the seed of its draws."""
        labeled = self._draw_places(len(self.labeled), LABELED_STREAM)
        self.x_index.copy_(self.labeled[labeled])
        self.x_labels.copy_(self.targets[labeled])
        self.x_pseudo.copy_(labeled >= len(self.original_labeled))
        if self.config.method == "mixmatch":
            self.u_index.copy_(self.unlabeled[self._draw_places(len(self.unlabeled), UNLABELED_STREAM)])
        self.lambda_u_now.fill_(self.lambda_u())
        self.decay.fill_(1 - self.lr() * self.config.train.weight_decay)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.lr())
            else:
                group["lr"] = self.lr()
        self.generator.manual_seed(step_seed(self.config.seed, self.step, self.ranks.rank))

    def _run_step(self) -> None:
        """Draw views, compute the loss, update, decay, average: all on the device."""
        with self.autocast():
            losses, sums = self._mixmatch_losses() if self.config.method == "mixmatch" else self._supervised_losses()
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        # With the gradients go BatchNorm's running statistics and the sums: what ranks hold is always the same.
        self.ranks.average([*(parameter.grad for parameter in self.model.parameters()), *self.model.buffers(), sums])
        self.optimizer.step()
        with torch.no_grad():
            # The authors' weight decay: kernels only, after the step, by a factor. Not L2 in the gradient.
            torch._foreach_mul_(self.kernels, self.decay)
            averaged, current = list(self.ema_model.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(averaged, current, 1 - self.config.train.ema_decay)
            self.totals += sums

    @property
    def precision_name(self) -> str:
        """The precision as the config names it: float32 or bfloat16."""
        return str(self.precision).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return the context that convolutions and the dense layer run in: bfloat16 if so configured."""
        # No cache of cast weights: one filled while guessing, without gradient, could serve the pass that needs it.
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled, cache_enabled=False)

    def use_pseudo_labels(self, index: Tensor, labels: Tensor) -> None:
        """Train on these images as labelled ones from now on, in place of those given before, and not as unlabelled.

        Should no image be left unlabelled, all stay it.

        Args:
            index: (n,) int64, training-set indices, none of them labelled in the split.
            labels: (n,) int64, their labels.
        """
        self.pseudo_index, self.pseudo_labels = index.to(self.device), labels.to(self.device)
        self.labeled = torch.cat([self.original_labeled, self.pseudo_index])
        self.targets = torch.cat([self.labels[self.original_labeled], self.pseudo_labels])
        left = ~torch.isin(self.original_unlabeled, self.pseudo_index)
        self.unlabeled = self.original_unlabeled[left] if left.any() else self.original_unlabeled
        # For each stream the first step of the orders looked up, and the orders (STEPS_PER_REFILL, B).
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def lr(self) -> float:
        """Return the learning rate of the next step."""
        train = self.config.train
        if train.optimizer == "adam":
            return train.lr
        return train.lr * train.lr_decay_factor ** sum(self.step >= at for at in train.lr_decay_steps)

    def lambda_u(self) -> float:
        """Return lambda_U of the next step."""
        return ramp_up(self.step, self.config.mixmatch.lambda_u, self.config.mixmatch.ramp_up_steps)

    def read_statistics(self) -> dict[str, float | list[float]]:
        """Read and reset the means over the steps since the last call.

        Returns:
            ``loss``, ``loss_labeled``; with MixMatch also ``loss_unlabeled``, ``confidence`` (mean largest entry of
            the sharpened guesses), ``guess_accuracy`` (percent, NaN where no class is known) and ``guesses``
            (share of each class among them).

        Raises:
            Diverged: if a loss was not finite in one of these steps.
        """
        sums = self.totals.tolist()
        self.totals.zero_()
        steps, loss = sums[:2]
        if not math.isfinite(loss):
            raise Diverged(f"the loss is no longer finite at step {self.step}; lower train.lr")
        means: dict[str, float | list[float]] = {"loss": loss / steps, "loss_labeled": sums[2] / steps}
        if self.config.method == "mixmatch":
            unlabeled, confidence, correct, known, *guesses = sums[3:]
            means["loss_unlabeled"] = unlabeled / steps
            means["confidence"] = confidence / steps
            means["guess_accuracy"] = 100 * correct / known if known else math.nan
            means["guesses"] = [guess / sum(guesses) for guess in guesses]
        return means

    def check_finite(self) -> None:
        """Raise Diverged if any weight is not finite."""
        norms = torch._foreach_norm([*self.model.parameters(), *self.ema_model.parameters()])
        if not torch.stack(norms).isfinite().all():
            raise Diverged(f"a weight is no longer finite at step {self.step}; lower train.lr")

    def preview(self) -> dict[str, Tensor]:
        """Return what the next step would train on, without doing it.

        Returns:
            The batch, mixed: ``images`` (n, c, h, w) in [-1, 1] and ``targets`` (n, C). With MixMatch also ``views``
            (K, B, c, h, w) and ``guesses`` (B, C).
        """
        self._give_inputs()
        with torch.no_grad(), self.autocast():
            if self.config.method == "supervised":
                images, targets = self._supervised_batch()
                return {"images": images, "targets": targets}
            mixed, views, _ = self._mixmatch_batch()
        return {"views": views, **mixed._asdict()}

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes, as named tensors; ``step`` apart."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"ema.{name}": value for name, value in self.ema_model.named_parameters()}
        for number, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{key}": value for key, value in values.items() if value is not None}
        state |= {"pseudo.index": self.pseudo_index, "pseudo.labels": self.pseudo_labels}
        return state | {"totals": self.totals}

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from ``state``, as after ``step`` steps.

        Raises:
            ValueError: if the state is not one of this network and optimiser.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "pseudo": {}, "totals": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"unknown entry {name!r}")
            parts[part][rest] = value
        averaged = dict(self.ema_model.named_parameters())
        if averaged.keys() != parts["ema"].keys() or "totals" not in state:
            raise ValueError("it lacks entries of this network, or has others")
        try:
            self.model.load_state_dict(parts["model"])
            with torch.no_grad():
                for name, value in parts["ema"].items():
                    averaged[name].copy_(value)
                self.totals.copy_(state["totals"])
            optimizer_state: dict[int, dict[str, Tensor]] = {}
            for name, value in parts["optimizer"].items():
                number, _, key = name.partition(".")
                optimizer_state.setdefault(int(number), {})[key] = value
            # Moments lie in memory as their parameters do, which files do not tell.
            for number, parameter in enumerate(self.model.parameters()):
                for key, value in optimizer_state.get(number, {}).items():
                    if value.shape == parameter.shape:
                        optimizer_state[number][key] = torch.empty_like(parameter).copy_(value)
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
            if parts["pseudo"]:
                self.use_pseudo_labels(parts["pseudo"]["index"], parts["pseudo"]["labels"])
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        self.step = step
        self._launch = None  # a recorded step knows the optimiser's old tensors

    def _supervised_losses(self) -> tuple[Losses, Tensor]:
        """Return the losses of this step's batch, and the sums that ``read_statistics`` averages."""
        losses = supervised_loss(self.network, *self._supervised_batch())
        sums = torch.stack([torch.ones_like(losses.total), losses.total, losses.labeled])
        return losses, sums.detach()

    def _mixmatch_losses(self) -> tuple[Losses, Tensor]:
        """Return the losses of this step's batch, and the sums that ``read_statistics`` averages."""
        mixed, _, truth = self._mixmatch_batch()
        losses = mixmatch_loss(self.network, mixed, self.interleave, self.lambda_u_now)
        confidence, guess = mixed.guesses.max(dim=1)
        sums = [torch.ones_like(losses.total), *losses, confidence.mean(), (guess == truth).sum(), (truth >= 0).sum()]
        return losses, torch.cat([torch.stack(sums), one_hot(guess, self.num_classes).sum(0)]).detach()

    def _supervised_batch(self) -> tuple[Tensor, Tensor]:
        """Draw this step's labelled batch, mixed if the config says so: images (B, c, h, w) and targets (B, C)."""
        x, p = self._draw_labeled()
        if not self.config.supervised.alpha:
            return x, p
        mixing = draw_mixing("joint", len(x), 0, self.config.supervised.alpha, self.generator)
        return mix(x, mixing), mix(p, mixing)

    def _mixmatch_batch(self) -> tuple[Mixed, Tensor, Tensor]:
        """Draw this step's batch: mixed, the views (K, B, c, h, w), and for statistics alone the truth (B,)."""
        settings, batch_size = self.config.mixmatch, self.batch_size
        x, p = self._draw_labeled()
        u = self._draw_views(self.u_index.repeat(settings.num_views)).unflatten(0, (settings.num_views, batch_size))
        mixing = draw_mixing(settings.mixup, batch_size, settings.num_views, settings.alpha, self.generator)
        guesser = self.ema_network if settings.guess_with_ema else self.network
        return mixmatch(guesser, x, p, u, settings.temperature, mixing), u, self.labels[self.u_index]

    def _draw_labeled(self) -> tuple[Tensor, Tensor]:
        """Draw one view of each image of this step's labelled batch, (B, c, h, w), and their labels, (B, C)."""
        x = self._draw_views(self.x_index)
        if self.config.pseudo_label.strong_augmentation:
            with torch.autocast(self.device.type, enabled=False):
                strong = random_strong_views(x, self.generator)
            x = torch.where(self.x_pseudo[:, None, None, None], strong, x)
        return x, one_hot(self.x_labels, self.num_classes)

    def _draw_views(self, index: Tensor) -> Tensor:
        return random_views(self.images, index, self.flip, self.padding, self.generator)

    def _draw_places(self, count: int, stream: int) -> Tensor:
        """Return this rank's share of this step's batch out of ``count`` images, (B,) in 0 .. count - 1."""
        batch_size = self.config.train.batch_size
        first = self.step - self.step % STEPS_PER_REFILL
        if self._orders.get(stream, (-1,))[0] != first:
            span = first * batch_size, (first + STEPS_PER_REFILL) * batch_size
            order = torch.from_numpy(shuffled_stream(count, *span, self.config.seed, stream))
            mine = order.view(STEPS_PER_REFILL, batch_size)[:, self.ranks.share(batch_size)]
            self._orders[stream] = first, mine.to(self.device)
        return self._orders[stream][1][self.step - first]

    def _make_optimizer(self) -> torch.optim.Optimizer:
        train = self.config.train
        parameters = list(self.model.parameters())
        on_gpu = self.device.type == "cuda"
        # On a GPU the learning rate is a tensor: a recorded step can then be given another.
        lr = torch.tensor(train.lr, device=self.device) if on_gpu else train.lr
        if train.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=on_gpu, capturable=on_gpu)
        return torch.optim.SGD(parameters, lr=lr, momentum=train.momentum, nesterov=train.nesterov, fused=on_gpu)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn the config's ``train.precision`` into a type; ``auto`` is bfloat16 on GPUs that compute in it."""
    if name == "auto":
        name = (
            "bfloat16"
            if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else "float32"
        )
    return torch.bfloat16 if name == "bfloat16" else torch.float32
