"""What a method is: its settings, the batch it needs, the loss of a step, its schedules, and any state of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn

from mixmatch.data.pool import Batch
from mixmatch.models import Network
from mixmatch.settings import Settings


@dataclass(frozen=True)
class MethodContext:
    """What a method is told of the run that it serves.

    Attributes:
        classes: names of the C classes.
        class_shares: (C,) float64 on the CPU, among the labeled images.
        batch_size: B, labeled images a step, of this process.
        steps: the length of the run.
        num_features: of an image, as ``Network.embed`` returns them.
        device: where the step is computed.
    """

    classes: Sequence[str]
    class_shares: Tensor
    batch_size: int
    steps: int
    num_features: int
    device: torch.device


class Networks(NamedTuple):
    """The network as it is trained, and with averaged weights."""

    current: Network
    averaged: Network


class Examples(NamedTuple):
    """What the network is trained on in a step."""

    images: Tensor  # (n, c, h, w)
    targets: Tensor  # (n, C)
    guesses: Tensor | None = None  # (M, C) what was guessed of each unlabeled image, where there are any


class Loss(NamedTuple):
    """The loss of a step. All are scalars, means over examples."""

    total: Tensor  # what is minimized
    parts: dict[str, Tensor]  # by the names in ``Method.parts``: each becomes a curve, its mean over steps


class Method(ABC):
    """A way to train a network on labeled and unlabeled images.

    All of a step is launched on the device and nothing is read back: it may be recorded once and replayed, and
    ``make_examples`` and ``loss`` may be compiled. What changes from step to step reaches them through their arguments,
    random numbers included.

    Attributes:
        Settings: the section of the config that bears the method's name.
        parts: names of the parts of the loss.
        descriptions: what its curves show, parts of the loss and schedules, by their names.
        num_views: K, views of each unlabeled image a step; 0: no unlabeled images are used.
        num_strong_views: S, how many strongly distorted ones there are beside these, see ``data.strong``.
        unlabeled_ratio: unlabeled images a step for each labeled one, M = unlabeled_ratio * B.
        predicts_rotation: whether it learns by how many quarters a view is turned, which ``data.rotate`` would hide.
        guesses: whether ``make_examples`` tells what it guessed of unlabeled images, if it uses any.
        collapse_hint: advice for when guesses go to few classes.
        state: tensors on the device that the method changes in place as it goes, floating point ones: saved and
            restored with the weights, averaged over processes after each step.
        head: what else is trained with the network, such as a second output, on ``task.device``; not averaged.
    """

    settings_type: ClassVar[type[Settings]] = Settings
    parts: ClassVar[tuple[str, ...]] = ()
    descriptions: ClassVar[dict[str, str]] = {}
    num_views: int = 0
    num_strong_views: int = 0
    unlabeled_ratio: int = 1
    predicts_rotation: bool = False
    guesses: bool = True
    collapse_hint: str = "start again with other settings"

    def __init__(self, settings: Settings, task: MethodContext) -> None:
        """Make ready for a run.

        Args:
            settings: an instance of ``Settings``.
            task: what the run is.
        """
        self.settings, self.task = settings, task
        self.state: dict[str, Tensor] = {}
        self.head: nn.Module = nn.Identity()

    @classmethod
    def depends_on_num_steps(cls, settings: Settings) -> bool:
        """Tell whether a schedule depends on ``task.steps``: such a run cannot be made longer."""
        return False

    def passes(self) -> int | None:
        """Return the passes over images of a step, to compare methods by: 1 forward, 2 backward; None: not told."""
        return None

    def schedules(self, step: int) -> dict[str, float]:
        """Return what changes with the number of completed steps, by name; each becomes a curve."""
        return {}

    def draw(self, generator: Generator) -> tuple[Tensor, ...]:
        """Draw the random numbers of a step that the method needs beside those of its views."""
        return ()

    @abstractmethod
    def make_examples(self, networks: Networks, batch: Batch, draws: tuple[Tensor, ...]) -> Examples:
        """Turn a batch into what the network is trained on, without gradient.

        Args:
            networks: to guess labels with.
            batch: as the method asked for it.
            draws: from ``draw``.
        """

    @abstractmethod
    def loss(self, network: Network, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Return the loss of what ``make_examples`` returned.

        Args:
            network: in training mode.
            examples: from ``make_examples``.
            schedules: scalars by the names of ``schedules``.
        """
