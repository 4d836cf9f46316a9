"""Networks, one file each. To add one: a ``Network``, named in ``MODELS``."""

import threading

import torch

from mixmatch.models.base import Network, NetworkSettings
from mixmatch.models.batch_norm import BatchNorm
from mixmatch.models.resnet import ResNet
from mixmatch.models.wide_resnet import WideResNet

__all__ = ["MODELS", "BatchNorm", "Network", "NetworkSettings", "ResNet", "WideResNet", "build_network"]

MODELS: dict[str, type[Network]] = {"wide_resnet": WideResNet, "resnet": ResNet}

_building = threading.Lock()  # torch's global generator is every thread's


def build_network(settings: NetworkSettings, num_classes: int, in_channels: int, seed: int = 0) -> Network:
    """Build the network that ``settings`` names, on the CPU, its weights a function of ``seed``.

    Args:
        settings: the ``model`` section.
        num_classes: C, the size of the output.
        in_channels: of the images.
        seed: of the weights, the same on every device. Torch's global generator is left as it was.
    """
    with _building, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[settings.network](settings, num_classes, in_channels)
