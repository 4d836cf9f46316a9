"""What a network must offer to be trained here."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from mixmatch.settings import Settings


class NetworkSettings(Settings):
    """The ``model`` section of every network; each adds keys of its own."""

    network: str = Field("wide_resnet", description="the network: wide_resnet or resnet")
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.001, description="share of a batch in BatchNorm's running statistics; short runs need more"
    )

    def title(self) -> str:
        """Return the network's name for a person, such as WRN-28-2."""
        return self.network


class Network(nn.Module, ABC):
    """A classifier of images. It knows tensors only: nothing of data sets, training or files.

    In training, one tensor holds several batches one after the other. Whatever depends on the batch, such as
    ``BatchNorm``, must treat each by itself, and let only the first move its running statistics: they are buffers, and
    what an evaluation uses. Parameters of two dimensions and more are kernels, which training decays.

    Attributes:
        dense: the last layer, from features to logits; ``__init__`` makes it.
    """

    dense: nn.Linear

    settings_type: ClassVar[type[NetworkSettings]] = NetworkSettings

    @abstractmethod
    def __init__(self, settings: NetworkSettings, num_classes: int, in_channels: int) -> None:
        """Build the network, its weights drawn from torch's global generator.

        Args:
            settings: an instance of ``Settings``, the ``model`` section.
            num_classes: C, the size of the output.
            in_channels: 3 for RGB, 1 for gray images.
        """
        super().__init__()

    @abstractmethod
    def embed(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return features.

        Args:
            x: images (num_batches * n, in_channels, h, w), values in [-1, 1].
            num_batches: in training, how many batches of equal size lie one after the other in ``x``. In evaluation
                the value changes nothing.
            update_statistics: in training, whether the first batch moves the running statistics.

        Returns:
            (num_batches * n, dense.in_features).
        """

    def forward(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return logits (num_batches * n, num_classes); arguments as for ``embed``."""
        return self.dense(self.embed(x, num_batches, update_statistics))
