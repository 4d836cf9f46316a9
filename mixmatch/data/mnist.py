"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017): 28x28, gray, 10 classes."""

from pathlib import Path

import torch

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_download, explain_download_errors


def load_mnist(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read either from ``settings.root``; download it if needed.

    Raises:
        UserError: if it cannot be read or downloaded, or does not fit into memory.
    """
    from torchvision.datasets import MNIST, FashionMNIST

    title, source = ("MNIST", MNIST) if settings.dataset == "mnist" else ("Fashion-MNIST", FashionMNIST)
    check_download(70_000, 28, 1, settings)
    raw = Path(settings.root) / source.__name__ / "raw"
    files = [(source.mirrors[0] + name, md5) for name, md5 in source.resources]
    with explain_download_errors(title, raw, files):
        train, test = (source(settings.root, train=part, download=True) for part in (True, False))
    names = [name.replace("/", " or ") for name in train.classes]  # T-shirt/top is not a valid folder name
    images, test_images = train.data.unsqueeze(-1), test.data.unsqueeze(-1)
    flip = settings.dataset == "fashion_mnist"
    return ImageData(settings.dataset, names, images, train.targets, test_images, test.targets, flip=flip)
