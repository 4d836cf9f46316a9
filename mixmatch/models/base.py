"""The interface of a network."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field
from torch import Generator, Tensor, nn

from mixmatch.models.batch_norm import BatchNorm
from mixmatch.settings import CountOrZero, Settings

ImageShape = tuple[int, int, int]  # (c, h, w)


class NetworkSettings(Settings):
    """The ``model`` section of every network; each adds keys of its own."""

    network: str = Field(
        "wide_resnet", description="the network: wide_resnet, resnet or timm (networks of the library timm, pretrained)"
    )
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.001, description="weight of a batch in BatchNorm's running statistics; short runs need more"
    )
    freeze_steps: CountOrZero | Literal["all"] = Field(
        0,
        description="first steps in which only the last layer is trained; all: a linear probe of the initial weights",
    )
    freeze_layers: CountOrZero = Field(
        0,
        description="number of layers, from the input, that are not trained, which is faster; in networks of timm a "
        "block is a layer, in others all but the last are one",
    )
    freeze_batch_norm: bool = Field(
        False, description="keep BatchNorm's running statistics as they are, and normalize with them in training too"
    )

    def display_name(self) -> str:
        """Return the usual name, such as WRN-28-2."""
        return self.network

    def default_image_size(self) -> int | None:
        """Return the side in pixels of the images that the network was made for; None: any."""
        return None

    def beyond_shapes(self) -> list[object]:
        """Return what distinguishes networks whose weights have the same names and shapes."""
        return []


class Network(nn.Module, ABC):
    """A classifier of images.

    In training one tensor may hold several batches, one after the other. Whatever depends on batch statistics, such as
    ``BatchNorm``, treats each batch by itself and lets only the first update its running statistics. Weight decay
    applies to parameters of two dimensions and more.

    Attributes:
        dense: the last layer, from features to logits; ``__init__`` creates it.
        frozen: whether only ``dense`` is trained; the layers before it compute as in evaluation.
        generator: of random numbers in the layers; the trainer sets it. None: PyTorch's own.
    """

    settings_type: ClassVar[type[NetworkSettings]] = NetworkSettings
    dense: nn.Linear
    frozen: bool = False
    generator: Generator | None = None

    @abstractmethod
    def __init__(self, settings: NetworkSettings, num_classes: int, shape: ImageShape) -> None:
        """Create the layers; ``initialize`` sets their weights.

        Args:
            settings: an instance of ``settings_type``, the ``model`` section.
            num_classes: C.
            shape: (c, h, w) of the images; c is 3 for RGB, 1 for gray.
        """
        super().__init__()
        self.freeze_batch_norm, self.freeze_layers = settings.freeze_batch_norm, settings.freeze_layers

    def initialize(self, generator: Generator) -> None:
        """Sample the weights: He's initialization (fan out) of convolutions, Glorot's of linear layers, no bias.

        A network with other parameters that start at random overrides it.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def read_pretrained(self) -> dict[str, Tensor]:
        """Return weights that others have trained, by the names of ``state_dict``; empty if the settings ask for none.

        Raises:
            UserError: if they cannot be read, or do not fit.
        """
        return {}

    def layer_depths(self) -> dict[str, int]:
        """Return for each parameter how many layers it is away from the input; ``dense`` is the last layer."""
        return {name: int(name.startswith("dense.")) for name, _ in self.named_parameters()}

    def has_weight_decay(self, name: str) -> bool:
        """Return whether weight decay applies to a parameter: not to biases, scales of normalization and the like."""
        return self.get_parameter(name).dim() > 1

    def freeze(self, frozen: bool) -> None:
        """Train only ``dense`` from now on, or all layers but those that stay frozen for good."""
        self.frozen = frozen
        depths = self.layer_depths()
        for name, parameter in self.named_parameters():
            is_last = name.startswith("dense.")
            parameter.requires_grad_(is_last or (not frozen and depths[name] >= self.freeze_layers))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        if self.frozen:
            for name, module in self.named_children():
                module.train(mode and name == "dense")
        return self

    @abstractmethod
    def embed(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return features.

        Args:
            x: (num_batches * n, c, h, w) in [-1, 1].
            num_batches: in training, how many batches of equal size ``x`` holds; no effect in evaluation.
            update_statistics: in training, whether the first batch updates the running statistics.

        Returns:
            (num_batches * n, dense.in_features).
        """

    def forward(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return logits (num_batches * n, num_classes); arguments as for ``embed``."""
        logits: Tensor = self.dense(self.embed(x, num_batches, update_statistics))
        return logits

    if TYPE_CHECKING:  # nn.Module's own returns Any

        def __call__(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor: ...  # noqa: D102
