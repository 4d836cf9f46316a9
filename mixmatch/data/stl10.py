"""STL-10 (Coates et al., 2011): 96x96, 5,000 labeled images in ten fixed folds of 1,000, and 100,000 without label."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_room, from_torchvision

TRAIN, UNLABELED, TEST = 5_000, 100_000, 8_000


def load_stl10(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read STL-10 below ``settings.root``, downloading it if need be.

    Raises:
        UserError: if it is not there, or damaged, and cannot be had; if it does not fit into memory.
    """
    from torchvision.datasets import STL10

    check_room(TRAIN + UNLABELED + TEST, 96, 3, settings, device)
    root = Path(settings.root)
    folder = root / STL10.base_folder
    with from_torchvision("STL-10", root, folder, f"{STL10.filename} (MD5 {STL10.tgz_md5}) into {root}"):
        train, test = (STL10(root, split=split, download=True) for split in ("train+unlabeled", "test"))
        lines = (folder / STL10.folds_list_file).read_text().splitlines()  # which no checksum covers
        folds = [[int(index) for index in line.split()] for line in lines if line.strip()]
        known = int((train.labels >= 0).sum())
        if len({len(fold) for fold in folds}) > 1 or not {*chain(*folds)} <= {*range(known)}:
            raise ValueError(f"{STL10.folds_list_file} does not fit the images")
    images, test_images = (
        torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 2, 3, 1))) for part in (train, test)
    )
    labels, test_labels = (torch.from_numpy(part.labels.astype(np.int64)) for part in (train, test))
    return ImageData("stl10", train.classes, images, labels, test_images, test_labels, flip=True, folds=folds)
