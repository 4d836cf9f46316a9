"""ResNet (He et al., arXiv:1512.03385) of basic blocks, for small images."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixmatch.models.base import ImageShape, Network, NetworkSettings
from mixmatch.models.batch_norm import BatchNorm
from mixmatch.settings import Count


class ResNetSettings(NetworkSettings):
    """The ``model`` section of a ResNet."""

    blocks: Annotated[list[Annotated[Count, Field(le=100)]], Field(min_length=1, max_length=6)] = Field(
        [1, 1, 1], description="of resnet: blocks in each group; groups from the second on halve size, double channels"
    )
    channels: Annotated[int, Field(ge=1, le=2048)] = Field(64, description="of resnet: of the first group")
    stem_stride: Annotated[int, Field(ge=1, le=8)] = Field(2, description="of resnet: stride of the first convolution")

    def display_name(self) -> str:
        """Return the usual name, with its layers counted, and the channels of the first group: ResNet-8-64."""
        return f"ResNet-{2 * sum(self.blocks) + 2}-{self.channels}"

    def beyond_shapes(self) -> list[object]:
        """Return the stride of the first convolution."""
        return [self.stem_stride]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, around a shortcut, which is a 1x1 one where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, bn_momentum: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = BatchNorm(out_channels, bn_momentum)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(out_channels, bn_momentum)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.bn_shortcut = BatchNorm(out_channels, bn_momentum)

    def forward(self, x: Tensor, num_batches: int, update_statistics: bool) -> Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x), num_batches, update_statistics))
        out = self.bn2(self.conv2(out), num_batches, update_statistics)
        if self.shortcut is not None:
            x = self.bn_shortcut(self.shortcut(x), num_batches, update_statistics)
        return F.relu(out + x)


class ResNet(Network):
    """A 3x3 stem, groups of basic blocks, global average pooling, one dense layer.

    With blocks [2, 2, 2, 2] and a stem of stride 1 it is the ResNet-18 that is usual for small images.
    """

    settings_type = ResNetSettings

    def __init__(self, settings: ResNetSettings, num_classes: int, shape: ImageShape) -> None:
        """Create the layers. Arguments as for ``Network``."""
        super().__init__(settings, num_classes, shape)
        channels, momentum = settings.channels, settings.bn_momentum
        self.stem = nn.Conv2d(shape[0], channels, 3, stride=settings.stem_stride, padding=1, bias=False)
        self.bn = BatchNorm(channels, momentum)
        self.blocks = nn.ModuleList()
        for group, count in enumerate(settings.blocks):
            for i in range(count):
                out_channels = settings.channels << group
                stride = 2 if group > 0 and i == 0 else 1
                self.blocks.append(BasicBlock(channels, out_channels, stride, momentum))
                channels = out_channels
        self.dense = nn.Linear(channels, num_classes)

    def embed(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return features, see ``Network.embed``."""
        x = F.relu(self.bn(self.stem(x), num_batches, update_statistics))
        for block in self.blocks:
            x = block(x, num_batches, update_statistics)
        features: Tensor = x.mean(dim=(2, 3))
        return features
