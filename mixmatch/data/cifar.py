"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 32x32, 10 classes, or 100 fine ones."""

from pathlib import Path

import torch

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_download, explain_download_errors


def load_cifar(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read CIFAR-10 or CIFAR-100 from ``settings.root``; download it if needed.

    Raises:
        UserError: if it cannot be read or downloaded, or does not fit into memory.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    title, source = ("CIFAR-10", CIFAR10) if settings.dataset == "cifar10" else ("CIFAR-100", CIFAR100)
    check_download(60_000, 32, 3, settings)
    root = Path(settings.root)
    archive = [(source.url, source.tgz_md5)]
    with explain_download_errors(title, root, archive, "; --config digits needs no download"):
        train, test = (source(root, train=part, download=True) for part in (True, False))
    images, test_images = torch.from_numpy(train.data), torch.from_numpy(test.data)
    labels, test_labels = torch.tensor(train.targets), torch.tensor(test.targets)
    classes, name = list(train.classes), settings.dataset
    return ImageData(name, classes, images, labels, test_images, test_labels, flip=True, authors_split=True)
