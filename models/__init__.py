"""Networks. Each knows tensors only: nothing of data sets, training or files."""

from models.wide_resnet import WideResNet

__all__ = ["WideResNet"]
