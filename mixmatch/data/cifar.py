"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 32x32, in ten and a hundred classes."""

from pathlib import Path
from typing import Any

import torch

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_room, from_torchvision


def load_cifar10(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read CIFAR-10 below ``settings.root``, downloading it if need be.

    Raises:
        UserError: if it is not there, or damaged, and cannot be had; if it does not fit into memory.
    """
    from torchvision.datasets import CIFAR10  # a second of import that the other data sets need not pay

    return _load("cifar10", "CIFAR-10", CIFAR10, settings, device)


def load_cifar100(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read CIFAR-100 with its 100 fine classes, as ``load_cifar10`` does."""
    from torchvision.datasets import CIFAR100

    return _load("cifar100", "CIFAR-100", CIFAR100, settings, device)


def _load(name: str, title: str, source: Any, settings: DataSettings, device: torch.device) -> ImageData:  # noqa: ANN401 - a class of torchvision's
    check_room(60_000, 32, 3, settings, device)
    root = Path(settings.root)
    files = f"{source.filename} (MD5 {source.tgz_md5}) into {root}"
    advice = ", or try configs/digits.yml, which needs no download"
    with from_torchvision(title, root, root / source.base_folder, files, advice):
        train, test = (source(root, train=part, download=True) for part in (True, False))
    return ImageData(
        name,
        list(train.classes),
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
        flip=True,
    )
