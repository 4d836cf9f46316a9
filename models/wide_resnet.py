"""Wide ResNet (Zagoruyko & Komodakis, arXiv:1605.07146) in the variant of the MixMatch authors' code."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.1
BN_EPSILON = 1e-3  # TensorFlow's default, which the authors' code uses


class BatchNorm(nn.Module):
    """Batch normalisation of several batches that lie one after the other in a single tensor.

    MixMatch's passes (label guessing, then the K+1 interleaved batches) are separate batches to
    BatchNorm, and only the first training pass may move the running statistics. Doing it here lets the
    convolutions run once over all of them.
    """

    def __init__(self, channels: int, momentum: float) -> None:
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


class Block(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and LeakyReLU, around a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution. In the first block of the first group it takes
    the activated input (``activate_shortcut``), elsewhere the raw one, as in the authors' code.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, activate_shortcut: bool, bn_momentum: float
    ) -> None:
        super().__init__()
        self.activate_shortcut = activate_shortcut
        self.bn1 = BatchNorm(in_channels, bn_momentum)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
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
        out = self.conv1(out)
        out = F.leaky_relu(self.bn2(out, num_batches, update_statistics), LEAKY_SLOPE)
        return skip + self.conv2(out)


class WideResNet(nn.Module):
    """Wide ResNet ``depth``-``width``: a 3x3 stem, three groups of blocks, global average pooling, one dense layer.

    Any image size works from 4x4 up; the second and the third group halve it.
    """

    def __init__(
        self, depth: int, width: float, num_classes: int, in_channels: int = 3, bn_momentum: float = 0.001
    ) -> None:
        """Build the network with the authors' initialisation.

        Args:
            depth: number of convolutions on the longest path, 6n + 4: 10, 16, 22, 28, ...
            width: widening factor; the groups have 16, 32 and 64 times ``width`` channels.
            num_classes: size of the output.
            in_channels: 3 for RGB, 1 for grey images.
            bn_momentum: share of a batch in BatchNorm's running statistics (TensorFlow's 0.999 is 0.001 here).

        Raises:
            ValueError: if ``depth`` is not 6n + 4, or 16 * ``width`` is not a whole number.
        """
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, ...), got {depth}")
        if width <= 0 or not float(16 * width).is_integer():
            raise ValueError(f"16 * width must be a whole number of channels, got width {width}")
        blocks_per_group = (depth - 4) // 6
        channels = 16
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        for group in range(3):
            out_channels = int(16 * width) << group
            for i in range(blocks_per_group):
                stride = 2 if group > 0 and i == 0 else 1
                first = group == 0 and i == 0
                self.blocks.append(Block(channels, out_channels, stride, first, bn_momentum))
                channels = out_channels
        self.bn = BatchNorm(channels, bn_momentum)
        self.dense = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.xavier_normal_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return logits.

        Args:
            x: images (num_batches * n, in_channels, h, w), values in [-1, 1].
            num_batches: how many batches lie one after the other in ``x``. In training, BatchNorm treats each
                by itself; in evaluation the value changes nothing.
            update_statistics: in training, whether the first batch moves BatchNorm's running statistics.

        Returns:
            Logits (num_batches * n, num_classes).
        """
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, num_batches, update_statistics)
        x = F.leaky_relu(self.bn(x, num_batches, update_statistics), LEAKY_SLOPE)
        return self.dense(x.mean(dim=(2, 3)))
