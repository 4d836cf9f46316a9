"""What a network must offer to be trained here, and the BatchNorm that it is made of."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixmatch.section import Section

BN_EPSILON = 1e-3  # TensorFlow's default, which the authors' code uses


class NetworkSettings(Section):
    """The ``model`` section of every network; each adds keys of its own."""

    network: str = Field("wide_resnet", description="the network: wide_resnet")
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
    """

    Settings: ClassVar[type[NetworkSettings]]

    @abstractmethod
    def __init__(self, settings: NetworkSettings, num_classes: int, in_channels: int) -> None:
        """Build the network, its weights drawn from torch's global generator.

        Args:
            settings: an instance of ``Settings``, the ``model`` section.
            num_classes: C, the size of the output.
            in_channels: 3 for RGB, 1 for grey images.
        """
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return logits.

        Args:
            x: images (num_batches * n, in_channels, h, w), values in [-1, 1].
            num_batches: in training, how many batches of equal size lie one after the other in ``x``. In evaluation
                the value changes nothing.
            update_statistics: in training, whether the first batch moves the running statistics.

        Returns:
            Logits (num_batches * n, num_classes).
        """


class BatchNorm(nn.Module):
    """Batch normalisation of several batches that lie one after the other in a single tensor.

    MixMatch's passes (label guessing, then the K+1 interleaved batches) are separate batches to
    BatchNorm, and only the first training pass may move the running statistics. Doing it here lets the
    convolutions run once over all of them.
    """

    def __init__(self, channels: int, momentum: float) -> None:
        """Start at the identity.

        Args:
            channels: of the input.
            momentum: share of a batch in the running statistics (TensorFlow's 0.999 is 0.001 here).
        """
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Normalise ``x``.

        Args:
            x: (num_batches * n, channels, h, w).
            num_batches: in training, how many batches of equal size ``x`` holds; each is normalised by its
                own mean and variance.
            update_statistics: in training, whether the first of them moves the running statistics.
        """
        if not self.training:
            return self._normalise(x, self.running_mean, self.running_var)
        first, *others = x.chunk(num_batches) if num_batches > 1 else [x]
        tracked = (self.running_mean, self.running_var) if update_statistics else (None, None)
        normalised = [self._normalise(first, *tracked)]
        normalised += [self._normalise(batch, None, None) for batch in others]
        return torch.cat(normalised) if others else normalised[0]

    def _normalise(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, BN_EPSILON)
