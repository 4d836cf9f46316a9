"""STL-10 (Coates et al., 2011): 96x96, 5,000 labeled images with ten published folds of 1,000, 100,000 unlabeled."""

from pathlib import Path

import numpy as np
import torch

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_download, explain_download_errors

NUM_TRAIN, NUM_UNLABELED, NUM_TEST = 5_000, 100_000, 8_000


def load_stl10(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read STL-10 from ``settings.root``; download it if needed.

    Raises:
        UserError: if it cannot be read or downloaded, or does not fit into memory.
    """
    from torchvision.datasets import STL10

    check_download(NUM_TRAIN + NUM_UNLABELED + NUM_TEST, 96, 3, settings)
    root = Path(settings.root)
    with explain_download_errors("STL-10", root, [(STL10.url, STL10.tgz_md5)]):
        train, test = (STL10(root, split=split, download=True) for split in ("train+unlabeled", "test"))
        lines = (root / STL10.base_folder / STL10.folds_list_file).read_text().splitlines()
        folds = [[int(index) for index in line.split()] for line in lines if line.strip()]
        images, test_images = (
            torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 2, 3, 1))) for part in (train, test)
        )
        labels, test_labels = (torch.from_numpy(part.labels.astype(np.int64)) for part in (train, test))
    return ImageData("stl10", train.classes, images, labels, test_images, test_labels, flip=True, folds=folds)
