"""Wide ResNet (Zagoruyko & Komodakis, arXiv:1605.07146) in the variant of the MixMatch authors' code."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from mixmatch.models.base import ImageShape, Network, NetworkSettings
from mixmatch.models.batch_norm import BatchNorm

LEAKY_SLOPE = 0.1
MAX_DEPTH = 1000


class WideResNetSettings(NetworkSettings):
    """The ``model`` section of a Wide ResNet."""

    depth: int = Field(
        28, description="of wide_resnet: convolutions on the longest path of three scales, 6n + 4: 10, 16, 22, ..."
    )
    width: Annotated[float, Field(ge=1 / 16, le=64, multiple_of=1 / 16)] = Field(
        2, description="of wide_resnet: widening factor, a multiple of 1/16; 16, 32, 64, ... times so many channels"
    )
    scales: Annotated[int, Field(ge=1, le=8)] = Field(
        3,
        description="of wide_resnet: groups of blocks, each from the second on at half the size and twice the channels",
    )

    @field_validator("depth")
    @classmethod
    def _six_n_plus_four(cls, depth: int) -> int:
        if not 10 <= depth <= MAX_DEPTH or (depth - 4) % 6:
            raise ValueError(f"must be 6n + 4: 10, 16, 22, 28, ... up to {MAX_DEPTH}")
        return depth

    def display_name(self) -> str:
        """Return the usual name: WRN-28-2."""
        return f"WRN-{self.depth}-{self.width:g}" + (f" of {self.scales} scales" if self.scales != 3 else "")


class Block(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and LeakyReLU, around a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution. In the first block of the first group it takes
    the activated input (``activate_shortcut``), elsewhere the raw one, as in the authors' code. A convolution of stride
    2 pads an image of even size at the right and bottom only: TensorFlow's "same".
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, activate_shortcut: bool, bn_momentum: float
    ) -> None:
        super().__init__()
        self.activate_shortcut, self.stride = activate_shortcut, stride
        self.bn1 = BatchNorm(in_channels, bn_momentum)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=int(stride == 1), bias=False)
        self.bn2 = BatchNorm(out_channels, bn_momentum)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor, num_batches: int, update_statistics: bool) -> Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, h / stride, w / stride)."""
        out = F.leaky_relu(self.bn1(x, num_batches, update_statistics), LEAKY_SLOPE)
        skip = out if self.activate_shortcut else x
        if self.shortcut is not None:
            skip = self.shortcut(skip)
        if self.stride == 2:
            height, width = out.shape[2:]
            out = F.pad(out, (width % 2, 1, height % 2, 1))
        out = self.conv1(out)
        out = F.leaky_relu(self.bn2(out, num_batches, update_statistics), LEAKY_SLOPE)
        residual: Tensor = self.conv2(out)
        return skip + residual


class WideResNet(Network):
    """A 3x3 stem, groups of blocks, global average pooling, one dense layer.

    The groups, as many as ``scales``, have 16, 32, 64, ... times ``width`` channels, and each but the first halves the
    image. Any size works from 4x4 up.
    """

    settings_type = WideResNetSettings

    def __init__(self, settings: WideResNetSettings, num_classes: int, shape: ImageShape) -> None:
        """Create the layers. Arguments as for ``Network``."""
        super().__init__(settings, num_classes, shape)
        blocks_per_group = (settings.depth - 4) // 6
        channels = 16
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        for group in range(settings.scales):
            out_channels = int(16 * settings.width) << group
            for i in range(blocks_per_group):
                stride = 2 if group > 0 and i == 0 else 1
                first = group == 0 and i == 0
                self.blocks.append(Block(channels, out_channels, stride, first, settings.bn_momentum))
                channels = out_channels
        self.bn = BatchNorm(channels, settings.bn_momentum)
        self.dense = nn.Linear(channels, num_classes)

    def embed(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return features, see ``Network.embed``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, num_batches, update_statistics)
        x = F.leaky_relu(self.bn(x, num_batches, update_statistics), LEAKY_SLOPE)
        features: Tensor = x.mean(dim=(2, 3))
        return features
