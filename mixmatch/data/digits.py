"""Scikit-learn's handwritten digits: 1,797 gray images of 8x8 pixels, bundled with it."""

import numpy as np
import torch

from mixmatch.data.dataset import DataSettings, ImageData

TEST_PER_CLASS = 40


def load_digits(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read the digits; a fixed set of 40 of each class is the test set."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(labels))
    test = np.sort(np.concatenate([order[labels[order] == c][:TEST_PER_CLASS] for c in range(10)]))
    train = np.setdiff1d(order, test)
    images, labels = torch.from_numpy(images), torch.from_numpy(labels).long()
    names = [str(digit) for digit in range(10)]
    return ImageData("digits", names, images[train], labels[train], images[test], labels[test], flip=False)
