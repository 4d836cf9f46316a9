"""The interface of a method: the batch it gets, the examples it trains on, its loss, its schedules and its state."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor, nn

from mixmatch.models.base import ImageShape, Network
from mixmatch.settings import Settings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class MethodContext:
    """The facts about a run that a method may depend on.

    Attributes:
        classes: names of the C classes.
        class_frequencies: (C,) float64 on the CPU, of the labeled images; they sum to 1.
        batch_size: B, labeled images per step and process.
        num_steps: steps that the schedules are made for.
        num_features: size of the network's features (``Network.embed``).
        num_images: training images, those for validation included: the range of ``Batch.u_index``.
        num_unlabeled: of them the unlabeled ones, when the method begins.
        image_shape: (c, h, w).
        device: where the steps run.
        generator: on the CPU, seeded with the run's seed, for initial weights of a head.
    """

    classes: Sequence[str]
    class_frequencies: Tensor
    batch_size: int
    num_steps: int
    num_features: int
    num_images: int
    num_unlabeled: int
    image_shape: ImageShape
    device: torch.device
    generator: Generator


class Networks(NamedTuple):
    """The network that is trained, and its EMA."""

    current: Network
    ema: Network


class Batch(NamedTuple):
    """The augmented images of a step, float32 in [-1, 1], in the paper's letters."""

    x: Tensor  # (B, c, h, w), one view of each labeled image, weak or strong
    p: Tensor  # (B, C), their labels as distributions
    u: Tensor  # (K, M, c, h, w), K weak views of each unlabeled image
    u_strong: Tensor  # (S, M, c, h, w), S strong views of each
    x_index: Tensor  # (B,) int64, which training images the labeled ones are, for what a method remembers of each
    u_index: Tensor  # (M,) int64, the same of the unlabeled ones


class Examples(NamedTuple):
    """What the network is trained on in a step."""

    images: Tensor  # (n, c, h, w)
    targets: Tensor  # (m, C) of the first m images
    guesses: Tensor | None = None  # (M, C), labels guessed before the loss, which returns them; also for pictures
    extra: Any = None  # tensors that the loss needs besides, such as ``batch.u_index``


class Loss(NamedTuple):
    """The loss of a step. All are scalars, means over examples."""

    total: Tensor  # what is minimized
    terms: dict[str, Tensor]  # named as in ``Method.loss_names``; each becomes a curve
    guesses: Tensor | None = None  # (M, C), the guessed label of each unlabeled image, for the metrics


class Method(ABC, Generic[S]):
    """A way to train a network on labeled and unlabeled images.

    A step may be compiled, and recorded as a CUDA graph: it must not read device tensors back to the host. Whatever
    changes from step to step is an argument, random numbers included; ``loss`` may draw from ``network.generator``.

    Attributes may also be set in ``__init__``, where they depend on the settings or the context.

    Attributes:
        settings_type: the section of the config with the method's name.
        loss_names: names of the terms of the loss, and of other scalars that become curves.
        descriptions: of the terms and schedules, shown in TensorBoard.
        num_views: K, weak views of each unlabeled image. If K and S are 0, unlabeled images are not used.
        num_strong_views: S, strongly augmented views of each.
        strong_labeled: whether the view of a labeled image is strong, too.
        labeled_as_unlabeled: whether its paper has the labeled images among the unlabeled ones.
        unlabeled_ratio: M / B, unlabeled images for each labeled one.
        predicts_rotation: whether it learns to predict rotations, which ``data.rotate`` would hide.
        guesses_labels: whether ``loss`` returns guesses if there are unlabeled images.
        collapse_hint: what to change when the guessed labels go to few classes.
        state: floating-point tensors, made in ``__init__`` and updated in place. They are saved in checkpoints, and
            averaged over processes: what is remembered of single images is right in one process only.
        head: a module that is trained with the network, without EMA.
    """

    settings_type: type[S]
    loss_names: tuple[str, ...] = ()
    descriptions: ClassVar[dict[str, str]] = {}
    num_views: int = 0
    num_strong_views: int = 0
    strong_labeled: bool = False
    labeled_as_unlabeled: bool = False
    unlabeled_ratio: int = 1
    predicts_rotation: bool = False
    guesses_labels: bool = True
    collapse_hint: str = "start again with other settings"

    def __init__(self, settings: S, context: MethodContext) -> None:
        """Store the settings and the context."""
        self.settings, self.context = settings, context
        self.state: dict[str, Tensor] = {}
        self.head: nn.Module = nn.Identity()

    @property
    def uses_unlabeled(self) -> bool:
        """Whether it asks for views of unlabeled images."""
        return self.num_views + self.num_strong_views > 0

    @classmethod
    def depends_on_num_steps(cls, settings: S) -> bool:
        """Return whether a schedule depends on the length of the run, which then cannot change."""
        return False

    def forward_equivalents(self) -> int | None:
        """Return the cost of a step in forward passes of one image (a backward pass counts 2); None: unknown."""
        return None

    def schedules(self, step: int) -> dict[str, float]:
        """Return the scheduled values after ``step`` completed steps, by name; each becomes a curve."""
        return {}

    def sample(self, generator: Generator) -> Any:  # noqa: ANN401 - each method's own
        """Sample the method's random numbers of a step, such as MixUp's."""
        return None

    @abstractmethod
    def make_examples(self, networks: Networks, batch: Batch, random: Any) -> Examples:  # noqa: ANN401
        """Turn a batch into training examples, without gradient.

        Args:
            networks: to guess labels with.
            batch: with the numbers of views that the method asks for.
            random: from ``sample``.
        """

    @abstractmethod
    def loss(self, network: Network, examples: Examples, schedules: dict[str, Tensor]) -> Loss:
        """Return the loss of the examples.

        It is also called without gradient, for pictures; what needs one goes into ``with torch.enable_grad()``.

        Args:
            network: in training mode.
            examples: from ``make_examples``.
            schedules: scalar tensors, named as in ``schedules``.
        """
