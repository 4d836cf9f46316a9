"""The interface of a network."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Generator, Tensor, nn

from mixmatch.settings import Settings


class NetworkSettings(Settings):
    """The ``model`` section of every network; each adds keys of its own."""

    network: str = Field("wide_resnet", description="the network: wide_resnet or resnet")
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.001, description="weight of a batch in BatchNorm's running statistics; short runs need more"
    )

    def display_name(self) -> str:
        """Return the usual name, such as WRN-28-2."""
        return self.network


class Network(nn.Module, ABC):
    """A classifier of images.

    In training one tensor may hold several batches, one after the other. Whatever depends on batch statistics, such as
    ``BatchNorm``, treats each batch by itself and lets only the first update its running statistics. Weight decay
    applies to parameters of two dimensions and more.

    Attributes:
        dense: the last layer, from features to logits; ``__init__`` creates it.
    """

    settings_type: ClassVar[type[NetworkSettings]] = NetworkSettings
    dense: nn.Linear

    @abstractmethod
    def __init__(self, settings: NetworkSettings, num_classes: int, in_channels: int) -> None:
        """Create the layers; ``initialize`` sets their weights.

        Args:
            settings: an instance of ``settings_type``, the ``model`` section.
            num_classes: C.
            in_channels: 3 for RGB, 1 for gray images.
        """
        super().__init__()

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

    @abstractmethod
    def embed(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return features.

        Args:
            x: (num_batches * n, in_channels, h, w) in [-1, 1].
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
