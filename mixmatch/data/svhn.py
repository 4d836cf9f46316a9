"""SVHN (Netzer et al., 2011): house-number digits, 32x32, unbalanced classes; with or without the extra images."""

from pathlib import Path

import numpy as np
import torch

from mixmatch.data.dataset import DataSettings, ImageData
from mixmatch.data.download import check_download, explain_download_errors

NUM_IMAGES = {"train": 73_257, "extra": 531_131, "test": 26_032}


def load_svhn(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read SVHN from ``settings.root``; ``svhn_extra`` adds its easier extra images for training. Download if needed.

    Raises:
        UserError: if it cannot be read or downloaded, or does not fit into memory.
    """
    from torchvision.datasets import SVHN

    names = ["train", "test"] if settings.dataset == "svhn" else ["train", "extra", "test"]
    check_download(sum(NUM_IMAGES[name] for name in names), 32, 3, settings)
    parts = []
    for name in names:
        url, _, md5 = SVHN.split_list[name]
        with explain_download_errors("SVHN", Path(settings.root), [(url, md5)]):
            part = SVHN(settings.root, split=name, download=True)
        parts.append((np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)), part.labels))
    images, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts[:-1], strict=True))
    test_images, test_labels = (torch.from_numpy(array) for array in parts[-1])
    return ImageData(
        settings.dataset,
        [str(digit) for digit in range(10)],
        images,
        labels,
        test_images,
        test_labels,
        flip=False,
        by_share=True,
        authors_split=True,
    )
