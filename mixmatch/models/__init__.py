"""Networks, one file each. To add one: a ``Network`` in a file, registered in ``MODELS``."""

from torch import Generator

from mixmatch.models.base import Network, NetworkSettings
from mixmatch.models.batch_norm import BatchNorm
from mixmatch.models.resnet import ResNet
from mixmatch.models.wide_resnet import WideResNet

__all__ = ["MODELS", "BatchNorm", "Network", "NetworkSettings", "ResNet", "WideResNet", "build_network"]

MODELS: dict[str, type[Network]] = {"wide_resnet": WideResNet, "resnet": ResNet}


def build_network(
    settings: NetworkSettings, num_classes: int, in_channels: int, generator: Generator | None = None
) -> Network:
    """Build the network that ``settings`` names, on the CPU.

    Args:
        settings: the ``model`` section.
        num_classes: C.
        in_channels: of the images.
        generator: on the CPU, of the initial weights; None: they will be loaded.
    """
    network = MODELS[settings.network](settings, num_classes, in_channels)
    if generator is not None:
        network.initialize(generator)
    return network
