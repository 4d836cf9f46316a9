"""The training step, and everything that it changes: weights, EMA, optimizer state, the method's state."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mixmatch.config.schema import TrainSettings
from mixmatch.data.augmentation import Augmenter, AugmentParams
from mixmatch.data.batch_reader import BatchReader
from mixmatch.data.device_dataset import DeviceDataset
from mixmatch.data.sampler import Sampler, step_seed
from mixmatch.data.stored_images import Images
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import Diverged, UserError
from mixmatch.evaluation import compute_outputs
from mixmatch.methods.base import Batch, Examples, Method, Networks
from mixmatch.methods.losses import one_hot
from mixmatch.models import BatchNorm, Network
from mixmatch.training.cuda_graph import capture
from mixmatch.training.execution import EAGER, ExecutionMode
from mixmatch.training.metrics import RunningMetrics
from mixmatch.training.optimizer import (
    copy_tensors,
    group_parameters,
    join_others,
    learning_rate,
    load_optimizer,
    make_optimizer,
    save_optimizer,
    set_learning_rate,
)
from mixmatch.training.precision import low_precision_copy, share_buffers

LOWER_RATE = "start a new run with a lower train.lr (or train.head_lr, train.muon_lr), under another name=NAME"


class Trainer:
    """Trains a network with a method, step by step.

    The random numbers of a step depend on the seed and the step only: the tensors of ``state`` and ``step`` are all
    that a checkpoint needs.

    Attributes:
        step: completed steps.
        start_step, method_start_step: where the run and its method began, above 0 in pseudo-label stages: the
            schedules of the learning rate and of the method start there.
        model: the network that is trained.
        ema_model: its EMA, with the BatchNorm statistics of ``model``; every reported accuracy is that of the EMA.
        parameters: ``model.<name>`` of the model and ``head.<name>`` of the method's head.
        mode: how steps are executed.
    """

    def __init__(
        self,
        settings: TrainSettings,
        dataset: DeviceDataset,
        sampler: Sampler,
        augmenter: Augmenter,
        model: Network,
        method: Method[Any],
        precision: str = "float32",
        distributed: DistributedContext = SINGLE_PROCESS,
        freeze_until: float = 0,
    ) -> None:
        """Prepare step 0.

        Args:
            settings: the ``train`` section. Each process takes its share of ``batch_size``.
            dataset: on this process's device.
            sampler, augmenter: choose and augment the images of a step.
            model: is moved to the device.
            method: computes the loss.
            precision: of convolutions and linear layers, ``float32`` or ``bfloat16``.
            distributed: the processes that train together. Each computes its share of the batch with BatchNorm
                statistics of its own; gradients, running statistics and the method's state are averaged.
            freeze_until: step up to which only the last layer is trained.
        """
        self.freeze_until = freeze_until
        self.settings, self.dataset, self.sampler, self.augmenter = settings, dataset, sampler, augmenter
        self.method, self.precision, self.distributed, self.device = method, precision, distributed, dataset.device
        self.step = self.start_step = self.method_start_step = 0
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.model.train()
        self.model.freeze(False)
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False)
        share_buffers(self.ema_model, self.model)
        self.parameters: dict[str, Tensor] = {
            f"{part}.{name}": parameter
            for part, module in (("model", self.model), ("head", method.head))
            for name, parameter in module.named_parameters()
        }
        # In bfloat16 a copy of the network computes, whose weights are cast once a step: 3% faster on a GPU than
        # casting them at each use.
        self.compute_model, self.weight_pairs = self.model, list[tuple[Tensor, Tensor]]()
        if precision == "bfloat16":
            self.compute_model, self.weight_pairs = low_precision_copy(self.model, torch.bfloat16)
        self.networks = Networks(self.compute_model, self.ema_model)
        self._method_state = dict(method.state)
        self.groups = group_parameters(settings, self.model, method.head)
        self.optimizer = make_optimizer(settings, self.groups, self.device)
        self.generator = torch.Generator(self.device)
        self.compute_model.generator = self.ema_model.generator = self.generator
        guesses = method.uses_unlabeled and method.guesses_labels
        self.metrics = RunningMetrics(method.loss_names, dataset.num_classes if guesses else 0, self.device)
        # The inputs of a step. They keep their place in memory, where a CUDA graph reads them.
        num_unlabeled = settings.batch_size * method.unlabeled_ratio if method.uses_unlabeled else 0
        self.batches = BatchReader(dataset, sampler, settings.batch_size, num_unlabeled)
        self.indices = self.batches.indices
        self.schedules = {name: torch.zeros((), device=self.device) for name in method.schedules(0)}
        self.decay_factors = [torch.zeros((), device=self.device) for _ in self.groups]
        self._launch: Callable[[], None] | None = None  # set by ``prepare``
        self.set_execution_mode(EAGER)

    def train_step(self) -> None:
        """Do one step: the host sets its inputs and launches it, and nothing is read back."""
        self.prepare()
        self.set_inputs()
        assert self._launch is not None
        self._launch()
        self.step += 1

    def _step(self) -> None:
        """Compute one step on the device, in the paper's order."""
        self._cast_weights()
        # Augment; guess labels, sharpen and mix them.
        augmentation, random = self._sample()
        examples = self._make_examples(augmentation, random)
        # Forward pass, loss, backward pass.
        loss, metrics = self._compute_loss(examples)
        self._backward(loss)
        # Average gradients, running statistics, the method's state and metrics over the processes.
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        batch_norms = [module for module in self.model.modules() if isinstance(module, BatchNorm)]
        statistics = [buffer for module in batch_norms for buffer in module.buffers()]
        head_buffers = [*self.method.head.buffers()]
        self.distributed.all_reduce_mean([*gradients, *statistics, *head_buffers, *self.method.state.values(), metrics])
        # Update; weight decay of convolution and linear weights: a factor, not L2 in the gradient; EMA.
        self.optimizer.step()
        with torch.no_grad():
            for group, factor in zip(self.groups, self.decay_factors, strict=True):
                decayed = [weight for weight in group["decayed"] if weight.requires_grad]
                if decayed:
                    torch._foreach_mul_(decayed, factor)
            torch._foreach_lerp_(
                [*self.ema_model.parameters()], [*self.model.parameters()], 1 - self.settings.ema_decay
            )
            self.metrics.sums += metrics

    def make_examples(self, augmentation: AugmentParams, random: Any) -> Examples:  # noqa: ANN401 - the method's own
        """Augment the images of the step, and let the method turn them into training examples, without gradient."""
        with torch.no_grad(), self.autocast():
            x, u, u_strong = self._augment(augmentation)
            p = one_hot(self.indices.x_labels, self.dataset.num_classes)
            batch = Batch(x, p, u, u_strong, self.indices.x_index, self.indices.u_index)
            return self.method.make_examples(self.networks, batch, random)

    def compute_loss(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return the loss, and what the step adds to ``metrics``."""
        with self.autocast():
            loss = self.method.loss(self.compute_model, examples, self.schedules)
        true_labels = self.dataset.metric_labels[self.indices.u_index]
        return loss.total, self.metrics.of_step(loss, true_labels)

    def _augment(self, augmentation: AugmentParams) -> tuple[Tensor, Tensor, Tensor]:
        batch = self.batches
        return self.augmenter.apply(batch.images, batch.x_index, batch.u_index, augmentation)

    def _sample(self) -> tuple[AugmentParams, Any]:
        """Sample the random numbers of the step."""
        method, num_unlabeled = self.method, len(self.indices.u_index)
        augmentation = self.augmenter.sample(
            len(self.indices.x_index),
            method.num_views * num_unlabeled,
            method.num_strong_views * num_unlabeled,
            self.generator,
            method.strong_labeled,
        )
        return augmentation, method.sample(self.generator)

    def _backward(self, loss: Tensor) -> None:
        """Compute the gradients, in bfloat16 those of the copy, which become float32 here."""
        self.optimizer.zero_grad()
        self.compute_model.zero_grad()
        loss.backward()
        if self.weight_pairs:
            low_gradients = [low.grad for _, low in self.weight_pairs if low.grad is not None]
            weights = [weight for weight, low in self.weight_pairs if low.grad is not None]
            gradients = [torch.empty_like(weight) for weight in weights]
            torch._foreach_copy_(gradients, low_gradients)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient

    def _cast_weights(self) -> None:
        if self.weight_pairs:
            with torch.no_grad():
                torch._foreach_copy_([low for _, low in self.weight_pairs], [weight for weight, _ in self.weight_pairs])

    def autocast(self) -> torch.autocast:
        """Return the context in which convolutions and linear layers compute in the run's precision."""
        # No cache: a weight cast while guessing, without gradient, could serve the forward pass that needs one.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16", cache_enabled=False
        )

    # How a step is executed.

    def set_execution_mode(self, mode: ExecutionMode) -> None:
        """Execute the steps from now on in this mode."""
        self.mode = mode
        # These two are compiled or not; the step calls them.
        self._make_examples, self._compute_loss = self.make_examples, self.compute_loss
        if mode.compiled:
            torch.compiler.reset()  # there is a limit of compiled functions per process
            self._make_examples = torch.compile(self.make_examples, dynamic=False)
            self._compute_loss = torch.compile(self.compute_loss, dynamic=False)
        self._launch = None

    def compile(self) -> None:
        """Compute one step's gradients, which compiles it. No other process is waited for: each may fail to compile."""
        self._freeze()
        with self._preserved_state():
            self.set_inputs()
            self._cast_weights()
            loss, _ = self._compute_loss(self._make_examples(*self._sample()))
            self._backward(loss)

    def prepare(self) -> None:
        """Record the step as a CUDA graph, if the mode asks for it and it is not done. The state stays as it is."""
        self._freeze()
        if self._launch is not None:
            return
        self._launch = self._step
        if self.mode.cuda_graph:
            self.set_inputs()
            with self._preserved_state():
                self._launch = capture(self._step, self.generator).replay

    def _freeze(self) -> None:
        """Freeze the network for the first steps that ``model.freeze_steps`` asks for; another step is recorded."""
        frozen = self.step < self.freeze_until
        if frozen != self.model.frozen:
            for network in (self.model, self.compute_model, self.ema_model):
                network.freeze(frozen)
            self.ema_model.requires_grad_(False)
            join_others(self.optimizer, self.parameters.values())
            self._launch = None

    @contextmanager
    def _preserved_state(self) -> Iterator[None]:
        """Restore the state in place; what is created meanwhile, as optimizer state, becomes zero."""
        before = {name: value.clone() for name, value in self.state().items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.state().items():
                    value.copy_(before[name]) if name in before else value.zero_()

    # The inputs of a step.

    def set_inputs(self) -> None:
        """Write the inputs of the next step to the device: its images, schedules and seed."""
        self.batches.load(self.step)
        for name, scheduled in self.method_schedules().items():
            self.schedules[name].fill_(scheduled)
        for group, factor in zip(self.groups, self.decay_factors, strict=True):
            factor.fill_(1 - self.lr() * group["lr_scale"] * self.settings.weight_decay)
        set_learning_rate(self.optimizer, self.lr())
        self.generator.manual_seed(step_seed(self.sampler.seed, self.step, self.distributed.rank))

    def lr(self) -> float:
        """Return the learning rate of the next step."""
        return learning_rate(self.settings, self.step, self.start_step, self.freeze_until)

    def method_schedules(self) -> dict[str, float]:
        """Return the method's schedules at the next step."""
        return self.method.schedules(self.step - self.method_start_step)

    # What is read from the device.

    def predict(self, images: Images, index: Tensor | None = None) -> Tensor:
        """Return the class probabilities of the EMA model, see ``evaluation.compute_outputs``."""
        with self.autocast():
            return compute_outputs(self.ema_model, images, self.device, index, self.distributed).softmax(dim=1)

    def read_metrics(self) -> dict[str, Any]:
        """Return the means over the steps since the last call, with ``lr`` and the method's schedules.

        Raises:
            Diverged: if a loss was not finite in one of these steps.
        """
        means = self.metrics.read()
        if not math.isfinite(means["loss"]):
            raise Diverged(f"the loss is not finite at step {self.step}; {LOWER_RATE}")
        return {"lr": self.lr(), **self.method_schedules(), **means}

    def check_finite(self) -> None:
        """Raise Diverged if any weight is not finite."""
        norms = torch._foreach_norm([*self.parameters.values(), *self.ema_model.parameters()])
        if not torch.stack(norms).isfinite().all():
            raise Diverged(f"a weight is not finite at step {self.step}; {LOWER_RATE}")

    def preview(self) -> dict[str, Tensor]:
        """Return the examples of the next step, for pictures; the state stays as it is.

        Returns:
            ``images`` (n, c, h, w) in [-1, 1] and ``targets`` (m, C) of the first m. If the method guesses labels also
            ``views`` (K + S, M, c, h, w), strong views last, and ``guesses`` (M, C).
        """
        with self._preserved_state():
            self.set_inputs()
            self._cast_weights()
            augmentation, random = self._sample()
            examples = self.make_examples(augmentation, random)
            preview = {"images": examples.images, "targets": examples.targets}
            guesses = examples.guesses
            if guesses is None and self.metrics.num_classes:  # the loss guesses
                with torch.no_grad(), self.autocast():
                    guesses = self.method.loss(self.compute_model, examples, self.schedules).guesses
            if guesses is not None:
                _, u, u_strong = self._augment(augmentation)
                preview |= {"views": torch.cat([u, u_strong]), "guesses": guesses}
        return preview

    # Checkpoints.

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that training changes, by name.

        Raises:
            UserError: if the method's state has other tensors than at first.
        """
        if [*map(id, self.method.state.values())] != [*map(id, self._method_state.values())]:
            raise UserError("method: its state has new tensors; create it in __init__, and change it in place (copy_)")
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"ema.{name}": value for name, value in self.ema_model.named_parameters(remove_duplicate=False)}
        state |= {f"optimizer.{name}": value for name, value in save_optimizer(self.optimizer, self.parameters).items()}
        state |= {f"method.{name}": value for name, value in self.method.state.items()}
        state |= {f"head.{name}": value for name, value in self.method.head.state_dict().items()}
        state |= {"pseudo.index": self.dataset.pseudo_index, "pseudo.labels": self.dataset.pseudo_labels}
        return state | {"metrics": self.metrics.sums}

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from ``state``, as after ``step`` steps.

        Raises:
            ValueError: if the state does not fit this network, optimizer and method.
        """
        self.step = step
        self._freeze()
        apart = ("optimizer.", "pseudo.")  # of these there may be others than now
        ours, theirs = (
            {name: value for name, value in tensors.items() if not name.startswith(apart)}
            for tensors in (self.state(), state)
        )
        optimizer, pseudo = (
            {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)} for part in apart
        )
        if "metrics" in theirs and theirs["metrics"].shape != ours["metrics"].shape:
            theirs["metrics"] = ours["metrics"]  # the method names other terms of the loss now
        with torch.no_grad():
            copy_tensors(ours, theirs)
        load_optimizer(self.optimizer, self.parameters, optimizer)
        self.dataset.set_pseudo_labels(pseudo["index"], pseudo["labels"])
        self._launch = None  # a recorded step reads the former optimizer's tensors
