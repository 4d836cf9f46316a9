"""SVHN (Netzer et al., 2011): digits of house numbers, 32x32, not equally many of each; with or without extra ones."""

from pathlib import Path

import numpy as np
import torch

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_room, from_torchvision

TRAIN, EXTRA, TEST = 73_257, 531_131, 26_032


def load_svhn(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read SVHN's training and test images below ``settings.root``, downloading them if need be.

    Raises:
        UserError: if they are not there, or damaged, and cannot be had; if they do not fit into memory.
    """
    check_room(TRAIN + TEST, 32, 3, settings, device)
    return _load("svhn", ("train",), Path(settings.root))


def load_svhn_extra(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read SVHN with its 531,131 easier extra images among the training images, as ``load_svhn`` does."""
    check_room(TRAIN + EXTRA + TEST, 32, 3, settings, device)
    return _load("svhn_extra", ("train", "extra"), Path(settings.root))


def _load(name: str, training: tuple[str, ...], root: Path) -> ImageData:
    from scipy.io.matlab import MatReadError
    from torchvision.datasets import SVHN

    parts = []
    for part in (*training, "test"):
        _, file, checksum = SVHN.split_list[part]
        with from_torchvision("SVHN", root, root / file, f"{file} (MD5 {checksum}) into {root}"):
            try:
                read = SVHN(root, split=part, download=True)
            except MatReadError as error:
                raise ValueError(str(error)) from None
        parts.append((np.ascontiguousarray(read.data.transpose(0, 2, 3, 1)), read.labels))
        del read
    images = torch.from_numpy(np.concatenate([images for images, _ in parts[:-1]]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts[:-1]]))
    test_images, test_labels = map(torch.from_numpy, parts[-1])
    digits = [str(digit) for digit in range(10)]
    return ImageData(name, digits, images, labels, test_images, test_labels, flip=False, by_share=True)
