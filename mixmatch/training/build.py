"""Builds the trainer of a run from its config, images and split."""

import math

import torch

from mixmatch.config.schema import Config
from mixmatch.data import ImageData
from mixmatch.data.augmentation import Augmenter
from mixmatch.data.device_dataset import DeviceDataset
from mixmatch.data.sampler import Sampler
from mixmatch.data.split import Split
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import UserError
from mixmatch.methods import METHODS
from mixmatch.methods.base import MethodContext
from mixmatch.models import build_network
from mixmatch.training.precision import choose_precision
from mixmatch.training.trainer import Trainer


def make_trainer(
    config: Config,
    data: ImageData,
    split: Split,
    device: torch.device,
    precision: str | None = None,
    distributed: DistributedContext = SINGLE_PROCESS,
    start_step: int = 0,
    method_start_step: int = 0,
    method_num_steps: int | None = None,
) -> Trainer:
    """Build the trainer at step 0.

    Args:
        config: of the run.
        data: the images.
        split: which of them are labeled, unlabeled and held out.
        device: of this process.
        precision: ``float32`` or ``bfloat16``; None: chosen by ``train.precision``, network and device.
        distributed: the processes that train together.
        start_step, method_start_step: see ``Trainer``.
        method_num_steps: the length of the method's schedules; None: from ``method_start_step`` to ``train.steps``.

    Raises:
        UserError: if the config does not fit the images or the memory.
    """
    settings = config.data
    channels, height, _ = data.shape
    batch_size = distributed.local_batch_size(config.train.batch_size)
    flip = data.flip if settings.flip == "auto" else settings.flip
    augmenter = Augmenter(height, flip, settings)
    dataset = DeviceDataset(data, split, device, settings.keep_on, distributed.local_world_size)
    generator = torch.Generator().manual_seed(config.seed)
    network = build_network(config.model, dataset.num_classes, data.shape, generator)
    if method_num_steps is None:
        method_num_steps = config.train.steps - method_start_step
    context = MethodContext(
        data.classes,
        dataset.class_frequencies(),
        batch_size,
        method_num_steps,
        network.dense.in_features,
        len(data.images),
        data.shape,
        device,
        torch.Generator().manual_seed(config.seed),
    )
    method = METHODS[config.method](config.method_settings, context)
    if method.num_views and not split.unlabeled:
        raise UserError(
            "data: no unlabeled images are left; add some, or use method=supervised, fewer labels, or "
            "data.labeled_as_unlabeled=true"
        )
    if method.predicts_rotation and settings.rotate:
        raise UserError(f"data.rotate: {config.method} learns to predict rotations; set one of the two")
    if method.num_strong_views and channels not in (1, 3):
        raise UserError(f"data: strong augmentation needs gray or RGB images, these have {channels} channels")
    precision = precision or choose_precision(config.train.precision, device, network, data.shape)
    sampler = Sampler(config.seed, distributed.rank, distributed.world_size, config.train.balanced_sampling)
    freeze_until = math.inf if config.model.freeze_steps == "all" else config.model.freeze_steps
    trainer = Trainer(config.train, dataset, sampler, augmenter, network, method, precision, distributed, freeze_until)
    trainer.start_step, trainer.method_start_step = start_step, method_start_step
    return trainer
