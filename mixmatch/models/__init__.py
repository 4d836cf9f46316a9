"""Networks, one file each. To add one: a ``Network`` in a file, registered in ``MODELS``."""

from torch import Generator
from torch.nn.modules.batchnorm import _BatchNorm

from mixmatch.errors import UserError
from mixmatch.models.base import ImageShape, Network, NetworkSettings
from mixmatch.models.batch_norm import BatchNorm
from mixmatch.models.resnet import ResNet
from mixmatch.models.timm_network import TimmNetwork
from mixmatch.models.wide_resnet import WideResNet

__all__ = [
    "MODELS",
    "BatchNorm",
    "ImageShape",
    "Network",
    "NetworkSettings",
    "ResNet",
    "TimmNetwork",
    "WideResNet",
    "build_network",
]

MODELS: dict[str, type[Network]] = {"wide_resnet": WideResNet, "resnet": ResNet, "timm": TimmNetwork}


def build_network(
    settings: NetworkSettings, num_classes: int, shape: ImageShape, generator: Generator | None = None
) -> Network:
    """Build the network that ``settings`` names, on the CPU.

    Args:
        settings: the ``model`` section.
        num_classes: C.
        shape: (c, h, w) of the images.
        generator: on the CPU, of the initial weights; None: they will be loaded.

    Raises:
        UserError: if the network does not fit the images, or a layer is PyTorch's batch normalization, which would mix
            the batches of a step.
    """
    network = MODELS[settings.network](settings, num_classes, shape)
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            raise UserError(
                f"model.network: {settings.network}.{name} is a {type(module).__name__} of PyTorch, which mixes the "
                "batches of a step; use mixmatch.models.BatchNorm(channels, settings.bn_momentum), and call it with "
                "embed's num_batches and update_statistics"
            )
    if generator is not None:
        network.initialize(generator)
    return network
