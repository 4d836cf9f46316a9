"""The training step: draw a batch, compute the loss of the method, update weights, decay kernels, average.

A Trainer owns everything that changes while training. What a step draws is a function of the run's seed and
the step number alone (see data/pool.py), so the state to save is weights, optimiser, the method's own, and step.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mixmatch.config import TrainSettings
from mixmatch.data.pool import Batch, Places, Pool, one_hot, step_seed
from mixmatch.errors import Diverged, UserError
from mixmatch.evaluation import predict
from mixmatch.methods.method import Examples, Loss, Method, Networks
from mixmatch.models import Network
from mixmatch.ranks import ALONE, Ranks
from mixmatch.training.capture import capture
from mixmatch.training.optimizer import learning_rate, load_optimizer, make_optimizer, set_learning_rate


class Trainer:
    """Network, averaged network, optimiser and step count, and the step that moves them.

    Attributes:
        step: completed training steps.
        model: the network that is trained.
        ema_model: the network with averaged weights; it shares the model's BatchNorm statistics, as in the
            authors' code. Every reported accuracy is its.
        pool: what is trained on.
        method: how.
    """

    def __init__(
        self, settings: TrainSettings, pool: Pool, network: Network, method: Method, ranks: Ranks = ALONE
    ) -> None:
        """Make ready for step 0.

        Args:
            settings: the ``train`` section; of ``batch_size`` images a step, each rank takes its share.
            pool: the images, on this rank's device.
            network: is moved to that device, and trained.
            method: computes the loss.
            ranks: the processes that train together. Each draws views and mixes among its own share, with
                BatchNorm's statistics of it; gradients, running statistics and the method's state are averaged.
        """
        self.settings, self.pool, self.method, self.ranks = settings, pool, method, ranks
        self.device = pool.device
        self.step = 0
        self.model = network.to(self.device, memory_format=torch.channels_last)
        self.model.train()
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False)
        for averaged, module in zip(self.ema_model.modules(), self.model.modules(), strict=True):
            averaged._buffers = module._buffers
        self.kernels = [p for p in self.model.parameters() if p.dim() > 1]
        self.optimizer = make_optimizer(settings, self.model.parameters(), self.device)
        self.generator = torch.Generator(self.device)
        # Sums over steps, by name with their length; see read_statistics.
        self.sums = {"steps": 1, "loss": 1, **dict.fromkeys(method.parts, 1)}
        if method.num_views:
            self.sums |= {"confidence": 1, "correct": 1, "known": 1, "guesses": pool.num_classes}
        self.totals = torch.zeros(sum(self.sums.values()), device=self.device)

        # What the host gives a step; see _give_inputs.
        self.places = Places(*(tensor.clone() for tensor in self._look_up_places()))
        self.schedules = {name: torch.zeros((), device=self.device) for name in method.schedules(0)}
        self.decay = torch.zeros((), device=self.device)

        self.precision = choose_precision(settings.precision, self.device)
        compiling = self.device.type == "cuda" if settings.compile == "auto" else settings.compile
        self.networks = Networks(self.model, self.ema_model)
        if compiling:
            torch.compiler.reset()  # compiled code of the runs before in this process counts towards a limit
            self.networks = Networks(*(torch.compile(network, dynamic=False) for network in self.networks))
        self.capturing = compiling and self.device.type == "cuda"
        self._launch: Callable[[], None] | None = None  # a step's work on the device, made ready by the first one

    def train_step(self) -> None:
        """Do one training step. The host only gives its inputs and launches it; nothing is read back."""
        self._give_inputs()
        if self._launch is None:
            self._launch = capture(self._run_step, self.state, self.generator) if self.capturing else self._run_step
        self._launch()
        self.step += 1

    def _look_up_places(self) -> Places:
        num_labeled = self.settings.batch_size
        num_unlabeled = num_labeled * self.method.unlabeled_ratio if self.method.num_views else 0
        return self.pool.places(self.step, num_labeled, num_unlabeled, self.ranks.rank, self.ranks.world)

    def _give_inputs(self) -> None:
        """Put on the device what sets this step apart: its images, its schedules, the seed of its draws."""
        for place, value in zip(self.places, self._look_up_places(), strict=True):
            place.copy_(value)
        for name, value in self.method.schedules(self.step).items():
            self.schedules[name].fill_(value)
        self.decay.fill_(1 - self.lr() * self.settings.weight_decay)
        set_learning_rate(self.optimizer, self.lr())
        self.generator.manual_seed(step_seed(self.pool.seed, self.step, self.ranks.rank))

    def _run_step(self) -> None:
        """Draw views, compute the loss, update, decay, average: all on the device."""
        _, examples = self._draw_examples()
        with self.autocast():
            loss = self.method.loss(self.networks.current, examples, self.schedules)
        sums = self._sum_up(loss, examples)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        # With the gradients go BatchNorm's running statistics, the method's state and the sums: what ranks hold is
        # always the same.
        gradients = [parameter.grad for parameter in self.model.parameters()]
        self.ranks.average([*gradients, *self.model.buffers(), *self.method.state.values(), sums])
        self.optimizer.step()
        with torch.no_grad():
            # The authors' weight decay: kernels only, after the step, by a factor. Not L2 in the gradient.
            torch._foreach_mul_(self.kernels, self.decay)
            averaged, current = list(self.ema_model.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(averaged, current, 1 - self.settings.ema_decay)
            self.totals += sums

    def _draw_examples(self) -> tuple[Batch, Examples]:
        with torch.no_grad():
            batch = self.pool.batch(self.places, self.method.num_views, self.generator)
            with self.autocast():
                return batch, self.method.make_examples(self.networks, batch, self.generator)

    def _sum_up(self, loss: Loss, examples: Examples) -> Tensor:
        """Return what this step adds to ``totals``, in the order of ``self.sums``."""
        sums = [torch.ones_like(loss.total), loss.total, *(loss.parts[name] for name in self.method.parts)]
        if examples.guesses is None:
            return torch.stack(sums).detach()
        confidence, guess = examples.guesses.max(dim=1)
        truth = self.pool.labels[self.places.u_index]
        sums += [confidence.mean(), (guess == truth).sum(), (truth >= 0).sum()]
        return torch.cat([torch.stack(sums), one_hot(guess, self.pool.num_classes).sum(0)]).detach()

    @property
    def precision_name(self) -> str:
        """The precision as the config names it: float32 or bfloat16."""
        return str(self.precision).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return the context that convolutions and the dense layer run in: bfloat16 if so configured."""
        # No cache of cast weights: one filled while guessing, without gradient, could serve the pass that needs it.
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled, cache_enabled=False)

    def lr(self) -> float:
        """Return the learning rate of the next step."""
        return learning_rate(self.settings, self.step)

    def predict(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the averaged network's class probabilities, in the run's precision; see ``evaluation.predict``."""
        with self.autocast():
            return predict(self.ema_model, images, self.device, index, self.ranks)

    def read_statistics(self) -> dict[str, float | list[float] | None]:
        """Read and reset the means over the steps since the last call, and say where the schedules are.

        Returns:
            ``loss``, the parts of the method's loss, ``lr`` and the method's schedules. If it guesses labels also
            ``confidence`` (mean largest entry of the guesses), ``guess_accuracy`` (percent, None where no class is
            known), ``guesses`` (share of each class among them), the largest of these, ``most_guessed_share``, and
            ``guessed_classes``, how many classes equally used would spread as widely.

        Raises:
            Diverged: if a loss was not finite in one of these steps.
        """
        sums = dict(zip(self.sums, self.totals.clone().cpu().split(list(self.sums.values())), strict=True))
        self.totals.zero_()
        steps, loss = sums["steps"].item(), sums["loss"].item()
        if not math.isfinite(loss):
            raise Diverged(f"the loss is no longer finite at step {self.step}; lower train.lr")
        means = {name: sums[name].item() / steps for name in ("loss", *self.method.parts)}
        means |= {"lr": self.lr(), **self.method.schedules(self.step)}
        if self.method.num_views:
            known, guesses = sums["known"].item(), sums["guesses"].tolist()
            means["confidence"] = sums["confidence"].item() / steps
            means["guess_accuracy"] = 100 * sums["correct"].item() / known if known else None
            means["guesses"] = [guess / sum(guesses) for guess in guesses]
            means["most_guessed_share"] = max(means["guesses"])
            means["guessed_classes"] = effective_classes(means["guesses"])
        return means

    def check_finite(self) -> None:
        """Raise Diverged if any weight is not finite."""
        norms = torch._foreach_norm([*self.model.parameters(), *self.ema_model.parameters()])
        if not torch.stack(norms).isfinite().all():
            raise Diverged(f"a weight is no longer finite at step {self.step}; lower train.lr")

    def preview(self) -> dict[str, Tensor]:
        """Return what the next step would train on, without doing it.

        Returns:
            ``images`` (n, c, h, w) in [-1, 1] and ``targets`` (n, C). If the method guesses labels also ``views``
            (K, M, c, h, w) and ``guesses`` (M, C).
        """
        self._give_inputs()
        before = {name: value.clone() for name, value in self.method.state.items()}
        batch, examples = self._draw_examples()
        for name, value in before.items():
            self.method.state[name].copy_(value)
        shown = {"images": examples.images, "targets": examples.targets}
        if examples.guesses is not None:
            shown |= {"views": batch.u, "guesses": examples.guesses}
        return shown

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes, as named tensors; ``step`` apart."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"ema.{name}": value for name, value in self.ema_model.named_parameters()}
        for number, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{key}": value for key, value in values.items() if value is not None}
        state |= {f"method.{name}": value for name, value in self.method.state.items()}
        state |= {f"pseudo.{name}": value for name, value in self.pool.state().items()}
        return state | {"totals": self.totals}

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from ``state``, as after ``step`` steps.

        Raises:
            ValueError: if the state is not one of this network, optimiser and method.
        """
        parts: dict[str, dict[str, Tensor]] = {
            part: {} for part in ("model", "ema", "optimizer", "method", "pseudo", "totals")
        }
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"unknown entry {name!r}")
            parts[part][rest] = value
        averaged = dict(self.ema_model.named_parameters())
        if (
            averaged.keys() != parts["ema"].keys()
            or self.method.state.keys() != parts["method"].keys()
            or "totals" not in state
        ):
            raise ValueError("it lacks entries of this network and method, or has others")
        try:
            self.model.load_state_dict(parts["model"])
            with torch.no_grad():
                for name, value in parts["ema"].items():
                    averaged[name].copy_(value)
                for name, value in parts["method"].items():
                    self.method.state[name].copy_(value)
                self.totals.copy_(state["totals"])
            load_optimizer(self.optimizer, parts["optimizer"])
            if parts["pseudo"]:
                self.pool.add_labels(parts["pseudo"]["index"], parts["pseudo"]["labels"])
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        self.step = step
        self._launch = None  # a recorded step knows the optimiser's old tensors


def share_batch(batch_size: int, ranks: Ranks) -> int:
    """Return how many labelled images a step each of several processes takes.

    Raises:
        UserError: if they cannot share.
    """
    share, rest = divmod(batch_size, ranks.world)
    if rest or share < 2:
        raise UserError(
            f"train.batch_size: {batch_size} cannot be shared by {ranks.world} processes; "
            "it must be a multiple of their number, with 2 or more for each"
        )
    return share


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn the config's ``train.precision`` into a type; ``auto`` is bfloat16 on GPUs that compute in it."""
    if name == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bfloat16" if on_gpu else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def effective_classes(counts: list[float]) -> float:
    """Return exp(entropy) of a histogram: how many classes equally used would spread as widely."""
    total = sum(counts)
    return math.exp(-sum(count / total * math.log(count / total) for count in counts if count))
