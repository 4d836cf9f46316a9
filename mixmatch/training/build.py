"""Builds the trainer of a run from its config, images and split."""

import math
from typing import Any

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
from mixmatch.methods.base import Method, MethodContext
from mixmatch.models import build_network
from mixmatch.runs.curves import DESCRIPTIONS
from mixmatch.runs.progress import Progress
from mixmatch.training.precision import choose_precision
from mixmatch.training.trainer import Trainer


def make_trainer(
    config: Config,
    data: ImageData,
    split: Split,
    device: torch.device,
    distributed: DistributedContext = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> Trainer:
    """Build the trainer at step 0.

    Args:
        config: of the run.
        data: the images.
        split: which of them are labeled, unlabeled and held out.
        device: of this process.
        distributed: the processes that train together.
        progress: of a run that has begun: its precision, and where its schedules start and end.

    Raises:
        UserError: if the config does not fit the images or the memory.
    """
    progress, settings, height = progress or Progress(), config.data, data.shape[1]
    batch_size = distributed.local_batch_size(config.train.batch_size)
    flip = data.flip if settings.flip == "auto" else settings.flip
    augmenter = Augmenter(height, flip, settings)
    dataset = DeviceDataset(data, split, device, settings.keep_on, distributed.local_world_size)
    generator = torch.Generator().manual_seed(config.seed)
    network = build_network(config.model, dataset.num_classes, data.shape, generator)
    context = MethodContext(
        data.classes,
        dataset.class_frequencies(),
        batch_size,
        progress.method_num_steps or config.train.steps - progress.method_start_step,
        network.dense.in_features,
        len(data.images),
        len(split.unlabeled),
        data.shape,
        device,
        generator,
    )
    method = METHODS[config.method](config.method_settings, context)
    check_method(method, config, len(split.unlabeled), of_stage=progress.start_step > 0)
    precision = progress.precision or distributed.broadcast_from_main(
        lambda: choose_precision(config.train.precision, device, network, data.shape)
    )
    sampler = Sampler(config.seed, distributed.rank, distributed.world_size, config.train.balanced_sampling)
    freeze_until = math.inf if config.model.freeze_steps == "all" else config.model.freeze_steps
    trainer = Trainer(config.train, dataset, sampler, augmenter, network, method, precision, distributed, freeze_until)
    trainer.start_step, trainer.method_start_step = progress.start_step, progress.method_start_step
    return trainer


def make_stage_method(config: Config, trainer: Trainer) -> Method[Any]:
    """Return the method that trains a pseudo-label stage after the run of ``trainer``.

    Args:
        config: of the stage, see ``stage_config``.
        trainer: of the run before.

    Raises:
        UserError: if it cannot be trained on the images.
    """
    method = METHODS[config.method](config.method_settings, trainer.method.context)
    check_method(method, config, len(trainer.dataset.split_unlabeled), of_stage=True)
    return method


def check_method(method: Method[Any], config: Config, num_unlabeled: int, of_stage: bool) -> None:
    """Raise UserError if a method cannot be trained on the images of a run, or names a metric as the run does."""
    if method.uses_unlabeled and not num_unlabeled:
        advice = "add some, or use method=supervised, fewer labels, or data.labeled_as_unlabeled=true"
        if of_stage:
            advice = "use pseudo_label.method=supervised, or continue another run with data.labeled_as_unlabeled=true"
        raise UserError(f"data: no unlabeled images are left; {advice}")
    names = [*DESCRIPTIONS, "step", "steps", "correct", "known", "guesses", *method.loss_names, *method.schedules(0)]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(
            f"method: {config.method} names a loss or schedule {repeated[0]!r}, which exists already; use another name"
        )
    if method.predicts_rotation and (config.data.rotate or config.data.degrees >= 45):
        key = "rotate" if config.data.rotate else "degrees"
        raise UserError(f"data.{key}: {config.method} learns to predict rotations; set one of the two")
    channels = method.context.image_shape[0]
    if method.num_strong_views and channels not in (1, 3):
        raise UserError(f"data: strong augmentation needs gray or RGB images, these have {channels} channels")
