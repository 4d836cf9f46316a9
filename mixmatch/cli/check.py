"""A look before hours are spent: the data, a sheet of what the network will see, and how long it would take."""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from mixmatch.config import Config
from mixmatch.data import DATASETS, ImageData, load_data
from mixmatch.data.pool import Pool, step_seed
from mixmatch.data.weak_augmentation import to_float
from mixmatch.distributed import SINGLE_PROCESS
from mixmatch.errors import Diverged, UserError, single_line
from mixmatch.files import explain_os_errors, write_atomically
from mixmatch.pseudo_labels.start import config_of_round
from mixmatch.runs.directory import CHECKPOINTS_KEPT, RunDirectory, open_run
from mixmatch.runs.fonts import show_name
from mixmatch.runs.plots import draw_grid, to_png
from mixmatch.training.console import Console
from mixmatch.training.device import choose_device, explain_memory
from mixmatch.training.execution import list_execution_modes, select_execution_mode
from mixmatch.training.messages import describe, describe_classes
from mixmatch.training.setup import find_split, make_trainer, start_from
from mixmatch.training.trainer import Trainer

WARM_UP, MOST_STEPS, SECONDS = 2, 50, 5.0  # steps that are not timed; and timed, until one of the two is reached
IMAGES_TIMED = 1000  # of an evaluation
SHOWN_OF_A_CLASS, SHOWN_CLASSES, SHOWN_UNLABELED, VIEWS = 3, 20, 12, 3
CHECKPOINTS = CHECKPOINTS_KEPT + 1  # and the best


def check(config: Config, path: Path) -> None:
    """Print what a run would meet, and how long it would take. Nothing is kept of it but a contact sheet.

    Args:
        config: of the run.
        path: where it would go; the sheet is written beside it.

    Raises:
        UserError: when all is said, if training would fail.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("--check: is done by one process; start it without torchrun")
    console, path = Console(), path.resolve()
    device = choose_device(config.device)
    problems: list[str] = []

    def attempt(what: Callable[[], None]) -> None:
        try:
            what()
        except (UserError, Diverged) as error:
            problems.append(str(error))

    look = DATASETS[config.data.dataset].look
    if look is not None:

        def look_at_data() -> None:
            report = look(config.data, device, console.quiet_bars)
            for line in report.lines:
                console.say(line)
            problems.extend(report.problems)

        attempt(look_at_data)
    if not problems:
        attempt(lambda: try_training(config, path, device, console))
    for problem in problems:
        print(f"problem: {single_line(problem)}", file=sys.stderr)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"training would fail, for {count} named above")
    print("nothing speaks against training")


def try_training(config: Config, path: Path, device: torch.device, console: Console) -> None:
    """Split the images, write the sheet, take some steps and say how long all of them would take.

    Raises:
        UserError: if something does not work.
        Diverged: if the loss is not finite.
    """
    run, done = RunDirectory(path), look_at_place(path, config)
    run.starts_over = not run.has_begun()
    data = load_data(config.data, device, console.quiet_bars)
    split = find_split(run, config, data)
    with explain_memory(config, device):
        trainer = make_trainer(config, data, split, device)
        lines = [f"{describe(config, data, split)} in {trainer.precision_name}", *describe_classes(data, split)]
        if config.init_from is not None and not done:
            lines += start_from(config.init_from, trainer, data.classes, SINGLE_PROCESS)
        for line in lines:
            console.say(line)
        sheet = path.with_name(f"{path.name}-check.png")
        try:
            with explain_os_errors(sheet):
                sheet.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(sheet, draw_sheet(trainer.pool, data))
            console.say(f"what the network will see: {sheet}")
        except UserError as error:
            console.say(f"note: no sheet of what the network will see: {error}")
        steps, settings = max(0, config.train.steps - done), config.pseudo_label
        parts = {"": (trainer, steps)}
        if settings.enabled and settings.select == "method":
            after = config_of_round(config, config.train.steps)
            parts["the round: "] = make_trainer(after, data, split, device), settings.steps
        elif settings.enabled:
            parts[""] = trainer, steps + settings.steps
        lines = [name + time_training(part, steps, config, device, console) for name, (part, steps) in parts.items()]
    print(*lines[:-1], f"{lines[-1]}, and {describe_memory(device)}", sep="\n")
    check_disk(trainer, path)


def time_training(trainer: Trainer, steps: int, config: Config, device: torch.device, console: Console) -> str:
    """Take some steps, and say how long ``steps`` of them will take."""
    select_execution_mode(trainer, list_execution_modes(config.train, device, steps), console.warn, console.busy)
    seconds, evaluating = time_steps(trainer), time_evaluation(trainer)
    total = steps * seconds + math.ceil(steps / config.train.eval_every) * evaluating
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    return (
        f"{steps:,} steps of {describe_seconds(seconds)} and evaluations of {describe_seconds(evaluating)} will take "
        f"{describe_seconds(total)} on {where}"
    )


def nearest(path: Path) -> Path:
    """Return what is there of a path: itself, or the closest folder above it."""
    return next(place for place in (path, *path.parents) if place.exists())


def look_at_place(path: Path, config: Config) -> int:
    """See that a run can be made or continued at ``path``, and return the steps that it has done.

    Raises:
        UserError: if it cannot.
    """
    there = nearest(path)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there}: cannot be written into; use another --run-dir")
    if not (path / "config.yml").exists():
        return 0
    with open_run(path, config) as run:  # which nobody else must be using
        saved = run.load_newest()
    done = 0 if saved is None else saved[1].step
    print(f"{path} is there already, at step {done}")
    return done


def draw_sheet(pool: Pool, data: ImageData) -> bytes:
    """Return a PNG of some labeled images of each class and some unlabeled ones: as they are, and views of each."""
    labels = pool.labels[pool.split_labeled].tolist()
    shown: list[tuple[int, str]] = []
    for number in range(min(len(data.classes), SHOWN_CLASSES)):
        members = [int(i) for i, label in zip(pool.split_labeled, labels, strict=True) if label == number]
        shown += [(i, show_name(data.classes, number)) for i in members[:SHOWN_OF_A_CLASS]]
    spread = pool.split_unlabeled[:: max(1, len(pool.split_unlabeled) // SHOWN_UNLABELED)][:SHOWN_UNLABELED]
    shown += [(int(i), "unlabeled") for i in spread]
    index = torch.tensor([i for i, _ in shown], device=pool.device)
    generator = torch.Generator(pool.device).manual_seed(step_seed(pool.seed, 0))
    views = [to_float(pool.images[index]), *(pool.random_views(index, generator) for _ in range(VIEWS))]
    captions = []
    for i, name in shown:
        file = "" if data.files is None else show_name([Path(data.files[i]).name], 0)
        captions += [f"{name}\n{file}", *["view"] * VIEWS]
    images = torch.stack(views, dim=1).flatten(0, 1)
    return to_png(draw_grid(images.cpu().numpy(), captions, columns=1 + VIEWS))


def time_steps(trainer: Trainer) -> float:
    """Take some steps and return how many seconds each takes."""
    for _ in range(WARM_UP):
        trainer.train_step()
    trainer.read_statistics()
    began = now = time.monotonic()
    taken = 0
    while taken < MOST_STEPS and now - began < SECONDS:
        trainer.train_step()
        taken += 1
        trainer.read_statistics()  # waits for the device, and finds a loss that is not finite
        now = time.monotonic()
    return (now - began) / taken


def time_evaluation(trainer: Trainer) -> float:
    """Return how many seconds an evaluation takes, from a part of it."""
    total = 0.0
    for images, _ in trainer.pool.held_out.values():
        part = images[:IMAGES_TIMED]
        trainer.predict(part[:1]).cpu()
        began = time.monotonic()
        trainer.predict(part).cpu()
        total += (time.monotonic() - began) * len(images) / len(part)
    return total


def check_disk(trainer: Trainer, path: Path) -> None:
    """See that checkpoints will find room, and say how much they need.

    Raises:
        UserError: if they will not.
    """
    needed = CHECKPOINTS * sum(tensor.numel() * tensor.element_size() for tensor in trainer.state().values())
    free = shutil.disk_usage(nearest(path)).free
    print(f"checkpoints will take {needed / 1e6:,.0f} MB of disk, {free / 1e9:,.1f} GB are free")
    if needed > free:
        raise UserError(f"{path}: checkpoints take more than there is; make room, or use another --run-dir")


def describe_memory(device: torch.device) -> str:
    """Say how much memory has been used so far, at most."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB of its memory"
    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB of memory"


def describe_seconds(seconds: float) -> str:
    """Return a duration as a person says it: ``3 h 20 min``, ``0.12 s``."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
