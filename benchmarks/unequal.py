"""Digits with classes of unequal size, as a data set for ``--import``: class 0 has ten times as many images as class 9.

    python3 main.py --import benchmarks/unequal.py --config digits data.dataset=unequal_digits data.num_labeled=all \
        data.num_validation=0 train.balanced_sampling=true seed=1

Class sizes fall geometrically, from 130 to 13. Of each class 30% are labeled, 39 to 4 images. The test set is that of
``digits``, 40 images of each class.
"""

from dataclasses import replace

import numpy as np
import torch

from mixmatch.data import DATASETS, DatasetEntry, DataSettings, ImageData
from mixmatch.data.digits import load_digits

LARGEST, RATIO, LABELED = 130, 10, 0.3


def load_unequal_digits(settings: DataSettings, device: torch.device, quiet: bool) -> ImageData:
    """Return the digits with fewer images of the later classes, and few labels."""
    data = load_digits(settings, device, quiet)
    labels, kept = data.labels.numpy().copy(), []
    for number in range(len(data.classes)):
        members = np.flatnonzero(labels == number)[: round(LARGEST * RATIO ** (-number / (len(data.classes) - 1)))]
        labels[members[round(LABELED * len(members)) :]] = -1
        kept.append(members)
    index = torch.from_numpy(np.sort(np.concatenate(kept)))
    return replace(data, name="unequal_digits", images=data.images[index], labels=torch.from_numpy(labels)[index])


DATASETS["unequal_digits"] = DatasetEntry(load_unequal_digits)
