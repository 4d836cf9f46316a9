"""The dry run (``--check``): read the data, try a few steps, report problems and the expected time."""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F

from mixmatch.config import Config, TrainSettings
from mixmatch.data import DATASETS
from mixmatch.data.memory import peak_memory
from mixmatch.data.sampler import step_seed
from mixmatch.data.weak_augmentation import to_float
from mixmatch.distributed import SINGLE_PROCESS
from mixmatch.errors import UserError, single_line
from mixmatch.files import write_atomically
from mixmatch.pseudo_labels.start import check_stage_path, stage_config, stage_path
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.plots import TILE_PIXELS, class_label, plot_grid, to_png
from mixmatch.training.build import make_stage_method
from mixmatch.training.console import Console
from mixmatch.training.device import choose_device, explain_out_of_memory
from mixmatch.training.execution import list_execution_modes, select_execution_mode
from mixmatch.training.setup import prepare, stored_config
from mixmatch.training.trainer import Trainer

SECONDS = 5.0  # time to measure steps for
NUM_EVALUATED = 1000  # images to measure an evaluation with
# In the picture, which fits on a screen: 8 rows of 5 images, each with two views.
NUM_IMAGES, NUM_LABELED, IMAGES_PER_ROW = 40, 30, 5


def check(config: Config, path: Path) -> None:
    """Print what training would, and how long it would take. Nothing but caches and a picture of its inputs is written.

    Args:
        config: of the run.
        path: the run directory; the picture is written next to it.

    Raises:
        UserError: if training would fail.
        Diverged: if the loss is not finite.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("--check: needs one process; start it without torchrun")
    console, device = Console(), choose_device(config.device)
    stage, path = stage_path(path, config.pseudo_label), path.resolve()
    report = DATASETS[config.data.dataset].report
    warnings: list[str] = []
    if report is not None:
        lines, warnings, problems = report(config.data, device, console.hide_bars)
        for line in lines:
            console.print(line)
        for warning in warnings:
            console.warn(warning)
        for problem in problems:
            print(f"problem: {single_line(problem)}", file=sys.stderr)
        if problems:
            raise UserError(f"check failed: {len(problems)} problem{'s' * (len(problems) > 1)}, see above")
    folder = next(folder for folder in (path, *path.parents) if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written; use another --run-dir")
    with explain_out_of_memory(device, config):
        run = RunDirectory(path)
        stored_config(run, config)  # raises if the directory contains a run of another config
        if config.pseudo_label.enabled:
            check_stage_path(stage, config)
        session = prepare(run, config, device, SINGLE_PROCESS, console)
        for line in session.messages:
            console.print(line)
        picture = path.with_name(f"{path.name}-check.png")
        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(picture, plot_inputs(session.trainer, session.spec.classes))
            console.print(f"inputs of the network: {picture}")
        except (OSError, UserError) as error:
            console.print(f"note: no picture of the network's inputs: {error}")
        estimate_time(session.trainer, config, console)
    check_disk(session.trainer, config.train, folder)
    if warnings:
        print(f"check passed, but with {len(warnings)} warning{'s' * (len(warnings) > 1)}, see above")
    else:
        print("check passed: ready to train")


def plot_inputs(trainer: Trainer, classes: list[str]) -> bytes:
    """Return a PNG of labeled images of each class and of unlabeled images, each followed by two augmented views.

    The second view is a strong one if the method uses such views.
    """
    dataset = trainer.dataset
    labels = dataset.labels.cpu()[dataset.split_labeled.cpu()]
    index, captions = [], list[str]()
    num_classes = min(len(classes), NUM_LABELED)
    for number in range(num_classes):
        members = dataset.split_labeled.cpu()[labels == number][: NUM_LABELED // num_classes]
        index.append(members)
        captions += [class_label(classes, number)] * len(members)
    num_unlabeled = NUM_IMAGES - len(captions)
    step = max(1, len(dataset.split_unlabeled) // num_unlabeled)
    unlabeled = dataset.split_unlabeled.cpu()[::step][:num_unlabeled]
    shown = dataset.images[torch.cat([*index, unlabeled])].to(dataset.device)
    captions += ["unlabeled"] * len(unlabeled)
    generator = torch.Generator(dataset.device).manual_seed(step_seed(trainer.sampler.seed, 0))
    every = torch.arange(len(shown), device=dataset.device)
    augmenter, strong = trainer.augmenter, trainer.method.num_strong_views > 0
    first = augmenter.weak_views(shown, every, generator)
    second = (augmenter.strong_views if strong else augmenter.weak_views)(shown, every, generator)
    images = torch.stack([to_float(shown), first, second], dim=1).flatten(0, 1).cpu()
    if images.shape[-1] > TILE_PIXELS // 2:  # smaller ones are enlarged by a whole number
        images = F.interpolate(images, (TILE_PIXELS, TILE_PIXELS), mode="bilinear", antialias=True)
    all_captions = [text for caption in captions for text in (caption, "view", "strong view" if strong else "view")]
    return to_png(plot_grid(images.numpy(), all_captions, columns=3 * IMAGES_PER_ROW))


def estimate_time(trainer: Trainer, config: Config, console: Console) -> None:
    """Try steps of the run, and of its pseudo-label stage if that has another method, and print how long all take."""
    stage, steps = config.pseudo_label, config.train.steps - trainer.step
    settings = stage_config(config, config.train.steps)
    steps_of_stage = (settings.train.steps - config.train.steps) * stage.enabled
    if stage.method is None:
        steps += steps_of_stage
    console.print(measure(trainer, steps, config, console))
    if stage.enabled and stage.method is not None:
        method = make_stage_method(settings, trainer)
        parts = trainer.dataset, trainer.sampler, trainer.augmenter, trainer.model
        stage_trainer = Trainer(config.train, *parts, method, trainer.precision)
        console.print(f"pseudo-label stage: {measure(stage_trainer, steps_of_stage, settings, console)}")
    memory = f"{peak_memory() / 1e9:.1f} GB"
    if trainer.device.type == "cuda":
        memory += f", and {torch.cuda.max_memory_reserved(trainer.device) / 1e9:.1f} GB on {trainer.device}"
    console.print(f"memory at its peak: {memory}")


def measure(trainer: Trainer, steps: int, config: Config, console: Console) -> str:
    """Return how long ``steps`` steps and their evaluations take, from a few of them."""
    device = trainer.device
    modes = list_execution_modes(config.train, device, steps)
    select_execution_mode(trainer, modes, console.print, console.warn)

    first = trainer.step

    def step() -> None:
        if trainer.step == first + steps:  # of a short run
            trainer.step = first
        trainer.train_step()
        trainer.read_metrics()  # waits for the device, and raises if the loss is not finite

    num_frozen = max(0, min(trainer.freeze_until - trainer.step, steps))
    seconds = seconds_per_call(step) * num_frozen / steps if num_frozen else 0.0
    if num_frozen < steps:
        trainer.freeze_until = 0
        seconds += seconds_per_call(step) * (steps - num_frozen) / steps
    evaluation = 0.0
    for images, _ in trainer.dataset.held_out.values():
        some = torch.arange(min(NUM_EVALUATED, len(images)), device=images.device)
        seconds_for_some = seconds_per_call(lambda: trainer.predict(images, some).cpu(), most=1)  # noqa: B023
        evaluation += seconds_for_some * len(images) / len(some)
    total = steps * seconds + math.ceil(steps / config.train.eval_every) * evaluation
    where = "the CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return (
        f"{steps:,} steps of {seconds:.2g} s and evaluations of {evaluation:.2g} s will take "
        f"{timedelta(seconds=round(total))} on {where}"
    )


def seconds_per_call(function: Callable[[], object], most: int = 50) -> float:
    """Return the mean time of a call after the first two, over up to ``most`` calls or ``SECONDS``."""
    function()
    function()
    calls, start = 0, time.monotonic()
    while calls < most and (calls == 0 or time.monotonic() < start + SECONDS):
        function()
        calls += 1
    return (time.monotonic() - start) / calls


def check_disk(trainer: Trainer, settings: TrainSettings, folder: Path) -> None:
    """Print the size of the checkpoints, and raise UserError if the disk is too small."""
    copies = -(-settings.steps // settings.checkpoint_every)
    if settings.keep_checkpoints != "all":
        # One is written before another is removed; the best may be apart.
        copies = min(copies, settings.keep_checkpoints + 1 + ("validation" in trainer.dataset.held_out))
    needed = copies * sum(tensor.numel() * tensor.element_size() for tensor in trainer.state().values())
    free = shutil.disk_usage(folder).free
    print(f"checkpoints: {needed / 1e6:,.0f} MB of disk, {free / 1e9:,.1f} GB are free")
    if needed > free:
        raise UserError(f"{folder}: not enough disk space for the checkpoints; free some, or use another --run-dir")
