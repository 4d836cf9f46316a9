"""Data sets, one file each. To add one, write a function that returns an ``ImageData`` and enter it in ``DATASETS``."""

import torch

from mixmatch.data.cifar import load_cifar
from mixmatch.data.dataset import DatasetEntry, DataSettings, ImageData, check_images, resize
from mixmatch.data.digits import load_digits
from mixmatch.data.folder.dataset import read_folder
from mixmatch.data.folder.report import describe_folder
from mixmatch.data.folder.settings import FolderSettings
from mixmatch.data.memory import check_memory
from mixmatch.data.mnist import load_mnist
from mixmatch.data.split import hold_out_test
from mixmatch.data.stl10 import load_stl10
from mixmatch.data.svhn import load_svhn

__all__ = ["DATASETS", "DataSettings", "DatasetEntry", "ImageData", "load_data"]

# Loaders import what they need (torchvision, scikit-learn) when they are called.
DATASETS: dict[str, DatasetEntry] = {
    "cifar10": DatasetEntry(load_cifar),
    "cifar100": DatasetEntry(load_cifar),
    "digits": DatasetEntry(load_digits),
    "fashion_mnist": DatasetEntry(load_mnist),
    "mnist": DatasetEntry(load_mnist),
    "stl10": DatasetEntry(load_stl10),
    "svhn": DatasetEntry(load_svhn),
    "svhn_extra": DatasetEntry(load_svhn),
    "folder": DatasetEntry(read_folder, FolderSettings, describe_folder),
}


def load_data(settings: DataSettings, device: torch.device, quiet: bool = True) -> ImageData:
    """Load the data set that ``settings`` names, resized to ``settings.image_size``; download or decode it if needed.

    Args:
        settings: the ``data`` section.
        device: that trains.
        quiet: show no progress bars.

    Raises:
        UserError: if the data set is missing, corrupt, contradictory or too large.
    """
    data = DATASETS[settings.dataset].load(settings, device, quiet)
    check_images(data)
    data = hold_out_test(data, settings)
    side = data.images.shape[1]
    size = settings.image_size or side
    if size == side:
        return data
    num_images = len(data.images) + (0 if data.test_images is None else len(data.test_images))
    check_memory(num_images * size * size * data.images.shape[3])
    return resize(data, size)
