"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), downloaded and checked by torchvision."""

import pickle
import urllib.error
from pathlib import Path
from typing import Any

import torch

from mixmatch.data.download import train_and_test
from mixmatch.data.images import DataSettings, ImageData
from mixmatch.errors import UserError


def load_cifar10(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read CIFAR-10 below ``settings.root``, downloading it if need be.

    Raises:
        UserError: if it is not there, or damaged, and cannot be had.
    """
    from torchvision.datasets import CIFAR10  # a second of import that the other data sets need not pay

    return _load("cifar10", "CIFAR-10", CIFAR10, settings)


def load_cifar100(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read CIFAR-100 with its 100 fine classes, as ``load_cifar10`` does."""
    from torchvision.datasets import CIFAR100

    return _load("cifar100", "CIFAR-100", CIFAR100, settings)


def _load(name: str, title: str, source: Any, settings: DataSettings) -> ImageData:  # noqa: ANN401 - a class of torchvision's
    root = Path(settings.root)
    folder = root / source.base_folder
    try:
        # Checks the MD5 of every file, unpacks the archive if that is there, and downloads it if not.
        train, test = train_and_test(source, root)
    except (urllib.error.URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        state = "is damaged" if folder.exists() else "is not there"
        raise UserError(
            f"{folder}: {title} {state} and could not be downloaded ({reason}); put {source.filename} "
            f"(MD5 {source.tgz_md5}) into {root}, or try configs/digits.yml, which needs no download"
        ) from None
    return ImageData(
        name,
        list(train.classes),
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
        flip=True,
    )
