"""The training step: draw a batch, compute the loss of the method, update weights, decay kernels, average.

A Trainer owns everything that changes while training. What a step draws is a function of the run's seed and
the step number alone (see data/pool.py), so the state to save is weights, optimizer, the method's own, and step.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixmatch.config import TrainSettings
from mixmatch.data.pool import Draws, Places, Pool, step_seed
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import Diverged
from mixmatch.evaluation import predict
from mixmatch.methods.base import Examples, Method, Networks
from mixmatch.models import BatchNorm, Network
from mixmatch.training.cuda_graph import EAGER, ExecutionMode, capture
from mixmatch.training.metrics import RunningMetrics
from mixmatch.training.optimizer import copy_all, learning_rate, load_optimizer, make_optimizer, set_learning_rate
from mixmatch.training.precision import make_twin


class Trainer:
    """Network, averaged network, optimizer and step count, and the step that moves them.

    Attributes:
        step: completed training steps.
        model: the network that is trained.
        ema_model: the network with averaged weights; it shares the model's BatchNorm statistics, as in the
            authors' code. Every reported accuracy is its.
        trained: parameters, the method's head last.
        pool: what is trained on.
        method: how.
        mode: how its steps are computed.
        graph: of the recorded step, None if it is not recorded.
        begun_at, method_begun_at: the steps at which this run and its method began, above 0 in rounds: where the
            learning rate's and the method's schedules begin.
        keep_graph: let ``graph`` be looked at; set it before the first step.
    """

    keep_graph = False
    capture = staticmethod(capture)

    def __init__(
        self,
        settings: TrainSettings,
        pool: Pool,
        network: Network,
        method: Method,
        precision: str = "float32",
        ranks: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        """Make ready for step 0.

        Args:
            settings: the ``train`` section; of ``batch_size`` images a step, each rank takes its share.
            pool: the images, on this rank's device.
            network: is moved to that device, and trained.
            method: computes the loss.
            precision: of convolutions and the dense layer, ``float32`` or ``bfloat16``.
            ranks: the processes that train together. Each draws views and mixes among its own share, with
                BatchNorm's statistics of it; gradients, running statistics and the method's state are averaged.
        """
        self.settings, self.pool, self.method, self.ranks = settings, pool, method, ranks
        self.device = pool.device
        self.step = self.begun_at = self.method_begun_at = 0
        self.model = network.to(self.device, memory_format=torch.channels_last)
        self.model.train()
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False)
        for averaged, module in zip(self.ema_model.modules(), self.model.modules(), strict=True):
            averaged._buffers = module._buffers
        self.trained = [*self.model.parameters(), *method.head.parameters()]
        self.kernels = [p for p in self.trained if p.dim() > 1]
        self.precision = getattr(torch, precision)
        # What computes: the model itself, or a twin whose kernels are cast once a step instead of at each use.
        twin = self.precision != torch.float32
        self.working, self.casts = make_twin(self.model, self.precision) if twin else (self.model, [])
        self.networks = Networks(self.working, self.ema_model)
        self.optimizer = make_optimizer(settings, self.trained, self.device)
        self.generator = torch.Generator(self.device)
        guesses = method.num_views and method.guesses
        self.totals = RunningMetrics(method.parts, pool.num_classes if guesses else 0, self.device)

        # What the host gives a step; see give_inputs.
        self.places = Places(*(tensor.clone() for tensor in self._look_up_places()))
        self.schedules = {name: torch.zeros((), device=self.device) for name in method.schedules(0)}
        self.decay = torch.zeros((), device=self.device)
        self.use(EAGER)

    def use(self, mode: ExecutionMode) -> None:
        """Compute steps in this way from now on."""
        self.mode = mode
        self.graph: torch.cuda.CUDAGraph | None = None
        self._examples, self._loss = self._make_examples, self._compute_loss
        for module in (*self.working.modules(), *self.ema_model.modules()):
            if isinstance(module, BatchNorm):
                module.joint = mode.compiled and self.device.type == "cuda"
        if mode.compiled:
            torch.compiler.reset()  # compiled code of the runs before in this process counts towards a limit
            # On a GPU what does not depend on each other is put into one kernel: hundreds of these are tiny.
            options = {"combo_kernels": True} if self.device.type == "cuda" else None
            self._examples, self._loss = (
                torch.compile(function, dynamic=False, options=options)
                for function in (self._make_examples, self._compute_loss)
            )
        self._launch: Callable[[], None] | None = None  # a step's work on the device, made ready by get_ready

    def get_ready(self) -> None:
        """Record the step, if that is how it is computed and it has not been done. Nothing is changed by it."""
        if self._launch is None:
            self.give_inputs()
            self._launch = self._run_step
            if self.mode.recorded:
                self.graph = self.capture(self._run_step, self.state, self.generator, self.keep_graph)
                self._launch = self.graph.replay

    def train_step(self) -> None:
        """Do one training step. The host only gives its inputs and launches it; nothing is read back."""
        self.get_ready()
        self.give_inputs()
        self._launch()
        self.step += 1

    def _look_up_places(self) -> Places:
        num_labeled = self.settings.batch_size
        num_unlabeled = num_labeled * self.method.unlabeled_ratio if self.method.num_views else 0
        return self.pool.places(self.step, num_labeled, num_unlabeled, self.ranks.rank, self.ranks.world)

    def give_inputs(self) -> None:
        """Put on the device what sets this step apart: its images, its schedules, the seed of its draws."""
        for place, value in zip(self.places, self._look_up_places(), strict=True):
            place.copy_(value)
        for name, value in self.method_schedules().items():
            self.schedules[name].fill_(value)
        self.decay.fill_(1 - self.lr() * self.settings.weight_decay)
        set_learning_rate(self.optimizer, self.lr())
        self.generator.manual_seed(step_seed(self.pool.seed, self.step, self.ranks.rank))

    def _run_step(self) -> None:
        """Draw views, compute the loss, update, decay, average: all on the device."""
        self.update(self.compute_gradients())

    def compute_gradients(self) -> Tensor:
        """Compute the loss of this step's inputs and its gradients, and return what is added to ``totals``."""
        self._cast_kernels()
        loss, sums = self._loss(self._examples(*self._draw())[1])
        self.optimizer.zero_grad(set_to_none=True)
        self.working.zero_grad(set_to_none=True)
        loss.backward()
        if used := [(kernel, cast.grad) for kernel, cast in self.casts if cast.grad is not None]:
            for kernel, _ in used:
                kernel.grad = torch.empty_like(kernel)
            torch._foreach_copy_([kernel.grad for kernel, _ in used], [gradient for _, gradient in used])
        return sums

    def _cast_kernels(self) -> None:
        if self.casts:
            with torch.no_grad():
                torch._foreach_copy_([cast for _, cast in self.casts], [kernel for kernel, _ in self.casts])

    def update(self, sums: Tensor) -> None:
        """Update weights by their gradients, decay kernels, move averages and totals."""
        # With the gradients go running statistics, the method's state and the sums: ranks always hold the same.
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        buffers = [*self.model.buffers(), *self.method.head.buffers(), *self.method.state.values()]
        self.ranks.average([*gradients, *buffers, sums])
        self.optimizer.step()
        with torch.no_grad():
            # The authors' weight decay: kernels only, after the step, by a factor. Not L2 in the gradient.
            torch._foreach_mul_(self.kernels, self.decay)
            averaged, current = list(self.ema_model.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(averaged, current, 1 - self.settings.ema_decay)
            self.totals.sums += sums

    def _draw(self) -> tuple[Draws, tuple[Tensor, ...]]:
        """Draw all random numbers of this step."""
        num_labeled, num_unlabeled = len(self.places.x_index), len(self.places.u_index)
        views, strong = self.method.num_views, self.method.num_strong_views
        draws = self.pool.draw(num_labeled, num_unlabeled, views, self.generator, strong)
        return draws, self.method.draw(self.generator)

    def _make_examples(self, draws: Draws, method_draws: tuple[Tensor, ...]) -> tuple[Tensor, Examples]:
        """Return the views of unlabeled images, the strong ones last, and what the network is trained on."""
        with torch.no_grad():
            batch = self.pool.batch(self.places, draws)
            with self.autocast():
                views = torch.cat([batch.u, batch.s]) if self.method.num_strong_views else batch.u
                return views, self.method.make_examples(self.networks, batch, method_draws)

    def _compute_loss(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return the loss, and what this step adds to ``totals``."""
        with self.autocast():
            loss = self.method.loss(self.networks.current, examples, self.schedules)
        return loss.total, self.totals.of_step(loss, examples.guesses, self.pool.truth[self.places.u_index])

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
        return learning_rate(self.settings, self.step, self.begun_at)

    def method_schedules(self) -> dict[str, float]:
        """Return the method's schedules at the next step."""
        return self.method.schedules(self.step - self.method_begun_at)

    def predict(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the averaged network's class probabilities, in the run's precision; see ``evaluation.predict``."""
        with self.autocast():
            return predict(self.ema_model, images, self.device, index, self.ranks)

    def read_statistics(self) -> dict[str, Any]:
        """Read and reset the means over the steps since the last call, and say where the schedules are.

        Returns:
            ``lr`` and the method's schedules, and the means of ``RunningMetrics.read``.

        Raises:
            Diverged: if a loss was not finite in one of these steps.
        """
        means = self.totals.read()
        if not math.isfinite(means["loss"]):
            raise Diverged(f"the loss is no longer finite at step {self.step}; lower train.lr")
        return {"lr": self.lr(), **self.method_schedules(), **means}

    def check_finite(self) -> None:
        """Raise Diverged if any weight is not finite."""
        norms = torch._foreach_norm([*self.trained, *self.ema_model.parameters()])
        if not torch.stack(norms).isfinite().all():
            raise Diverged(f"a weight is no longer finite at step {self.step}; lower train.lr")

    def preview(self) -> dict[str, Tensor]:
        """Return what the next step would train on, without doing it.

        Returns:
            ``images`` (n, c, h, w) in [-1, 1] and ``targets`` (n, C). If the method guesses labels also ``views``
            (K + S, M, c, h, w) and ``guesses`` (M, C).
        """
        self.give_inputs()
        before = {name: value.clone() for name, value in self.method.state.items()}
        self._cast_kernels()
        views, examples = self._make_examples(*self._draw())
        for name, value in before.items():
            self.method.state[name].copy_(value)
        shown = {"images": examples.images, "targets": examples.targets}
        if examples.guesses is not None:
            shown |= {"views": views, "guesses": examples.guesses}
        return shown

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes, as named tensors; ``step`` apart."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"ema.{name}": value for name, value in self.ema_model.named_parameters()}
        for number, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{key}": value for key, value in values.items() if value is not None}
        state |= {f"method.{name}": value for name, value in self.method.state.items()}
        state |= {f"head.{name}": value for name, value in self.method.head.state_dict().items()}
        state |= {f"pseudo.{name}": value for name, value in self.pool.state().items()}
        return state | {"totals": self.totals.sums}

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from ``state``, as after ``step`` steps.

        Raises:
            ValueError: if the state is not one of this network, optimizer and method.
        """
        parts = {name: {} for name in ("model", "ema", "optimizer", "method", "head", "pseudo", "totals")}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"unknown entry {name!r}")
            parts[part][rest] = value
        averaged = dict(self.ema_model.named_parameters())
        try:
            self.model.load_state_dict(parts["model"])
            with torch.no_grad():
                copy_all(averaged, parts["ema"])
                copy_all(self.method.state, parts["method"])
                copy_all(self.method.head.state_dict(), parts["head"])
                copy_all({"": self.totals.sums}, parts["totals"])
            load_optimizer(self.optimizer, parts["optimizer"])
            if parts["pseudo"]:
                self.pool.load_state(parts["pseudo"])
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        self.step = step
        self._launch = None  # a recorded step knows the optimizer's old tensors
