"""Data sets, one file each. To add one: a function that returns an ``ImageData``, named in ``DATASETS``."""

import torch

from mixmatch.data.cifar import load_cifar10, load_cifar100
from mixmatch.data.dataset import Dataset, DataSettings, ImageData, check_images
from mixmatch.data.digits import load_digits
from mixmatch.data.folder.dataset import FolderSettings, load_folder
from mixmatch.data.folder.report import look_at_folder
from mixmatch.data.mnist import load_fashion_mnist, load_mnist
from mixmatch.data.stl10 import load_stl10
from mixmatch.data.svhn import load_svhn, load_svhn_extra

__all__ = ["DATASETS", "DataSettings", "Dataset", "ImageData", "load_data"]

DATASETS: dict[str, Dataset] = {
    "cifar10": Dataset(load_cifar10),
    "cifar100": Dataset(load_cifar100),
    "digits": Dataset(load_digits),
    "fashion_mnist": Dataset(load_fashion_mnist),
    "mnist": Dataset(load_mnist),
    "stl10": Dataset(load_stl10),
    "svhn": Dataset(load_svhn),
    "svhn_extra": Dataset(load_svhn_extra),
    "folder": Dataset(load_folder, FolderSettings, look_at_folder),
}


def load_data(settings: DataSettings, device: torch.device, quiet: bool = True) -> ImageData:
    """Read the data set that ``settings`` names, downloading or decoding it if need be.

    Args:
        settings: the ``data`` section.
        device: where the images will live; its memory is asked for first.
        quiet: show no progress bars.

    Raises:
        UserError: if the data is missing, damaged, contradictory or too large.
    """
    return check_images(DATASETS[settings.dataset].load(settings, device, quiet), settings.image_size, device)
