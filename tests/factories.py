"""A trainer of a small network on random images, for tests of the step."""

import numpy as np
import torch

from mixmatch.config import build_config
from mixmatch.data import ImageData
from mixmatch.data.dataset import DataSettings
from mixmatch.data.split import Split, make_split
from mixmatch.distributed import SINGLE_PROCESS
from mixmatch.models import WideResNet
from mixmatch.training.build import make_trainer

CPU = torch.device("cpu")
SPLIT = Split("toy", "", list(range(9)), list(range(30)), list(range(30, 40)))


def toy_data(classes=3, size=8, channels=3, count=40):
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, size, channels), generator=source, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    return ImageData("toy", [f"c{i}" for i in range(classes)], images, labels, images, labels, flip=True)


def data_of_labels(labels, classes, **more):
    """A data set in which only the labels matter."""
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return ImageData("toy", classes, images, torch.from_numpy(np.asarray(labels)), None, None, flip=True, **more)


def split_of(data, seed=1, num_labeled="all", num_validation=0, labeled_as_unlabeled=False):
    settings = DataSettings(
        num_labeled=num_labeled, num_validation=num_validation, labeled_as_unlabeled=labeled_as_unlabeled
    )
    return make_split(data, settings, seed)


def make_toy_trainer(device=CPU, distributed=SINGLE_PROCESS, split=SPLIT, data=None, **sections):
    """A trainer of a WRN-10-1 on random images: 9 labeled, 30 unlabeled."""
    model = {} if "network" in sections.get("model", {}) else {"depth": 10, "width": 1}
    settings = {"model": model, "train": {"batch_size": 5}}
    for section, values in sections.items():
        settings[section] = settings.get(section, {}) | values if isinstance(values, dict) else values
    return make_trainer(build_config(settings), data or toy_data(), split, device, distributed=distributed)


def wide_resnet(depth, width, num_classes, in_channels=3, **settings):
    network = WideResNet(
        WideResNet.settings_type(depth=depth, width=width, **settings), num_classes, (in_channels, 32, 32)
    )
    network.initialize(torch.Generator().manual_seed(0))
    return network
