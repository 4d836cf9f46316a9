"""What comes before the first step: the device, the images and their split, the trainer, and where it goes on from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixmatch.config import Config
from mixmatch.data import ImageData, load_data
from mixmatch.data.dataset import ImageSpec
from mixmatch.data.pool import Pool
from mixmatch.data.split import Split, make_split, read_split
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import UserError
from mixmatch.evaluation import effective_classes
from mixmatch.inference import load_model
from mixmatch.methods import METHODS
from mixmatch.methods.base import MethodContext
from mixmatch.models import build_network
from mixmatch.pseudo_labels.stage import PseudoLabelStage
from mixmatch.pseudo_labels.start import check_round
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.progress import Progress
from mixmatch.runs.writer import RunWriter
from mixmatch.training.callbacks import Callback
from mixmatch.training.console import Console
from mixmatch.training.device import check_room, environment
from mixmatch.training.evaluators import Accuracy, CollapseWatch
from mixmatch.training.messages import describe, describe_classes, say_where
from mixmatch.training.precision import choose_precision
from mixmatch.training.trainer import Trainer


@dataclass(frozen=True)
class Session:
    """A run that is ready to go on.

    Attributes:
        trainer: at the step that ``progress`` says.
        progress: as the newest checkpoint has it.
        hooks: what is done beside the loop.
        spec: what the network sees, class names among it.
        split: which images are used for what.
        opening: lines that say what is about to be trained.
    """

    trainer: Trainer
    progress: Progress
    hooks: list[Callback]
    spec: ImageSpec
    split: Split
    opening: list[str]

    def evaluate(self, step: int, recorder: RunWriter) -> dict[str, float | None]:
        """Return what all hooks measure."""
        values: dict[str, float | None] = {}
        for hook in self.hooks:
            values |= hook.evaluate(step, recorder)
        return values


def prepare(
    run: RunDirectory,
    config: Config,
    device: torch.device,
    ranks: DistributedContext,
    console: Console,
    hooks: list[Callback],
) -> Session:
    """Read the images, build what trains, and bring it to the run's newest checkpoint.

    Args:
        run: open.
        config: the run's.
        device: from ``choose_device``.
        ranks: the processes that train together.
        console: where progress of decoding is shown.
        hooks: asked beside those that every run has.

    Raises:
        UserError: if the images, the split or the checkpoint cannot be had or don't fit.
    """
    with ranks.one_before_the_others():
        data = load_data(config.data, device, console.quiet_bars)
    split = ranks.from_first(lambda: find_split(run, config, data))
    saved = ranks.from_first(run.load_newest)
    progress = Progress() if saved is None else saved[1]

    def decide_precision(choose: Callable[[], str]) -> str:
        # Processors differ from machine to machine.
        return ranks.from_first(lambda: kept_precision(run, config, progress) or choose())

    if saved is None and ranks.from_first(run.has_results):
        raise UserError(f"{run.path}: is finished, but has no checkpoint to go on from; use another run directory")
    trainer = make_trainer(config, data, split, device, ranks, decide_precision, progress)
    starting = []
    if saved is not None:
        resume(trainer, saved[0], progress, run.path)
    elif config.init_from is not None:
        starting = start_from(config.init_from, trainer, data.classes, ranks)
    check_round(run, config, progress.start)
    if ranks.first:  # now that all is known to be good
        if run.starts_over:
            run.forget()
        run.write_config()
        run.write_split(split)
        run.write_images(data.spec())
        if saved is not None:
            run.write_metrics(progress.history)  # without the lines from after the checkpoint
    here = environment(device, ranks)
    opening = [f"note: {note}" for note in data.notes]
    if progress.step:
        opening += say_where(run, progress, config.train.steps, here)
    else:
        opening += [f"{run.path}: {describe(config, data, split)} in {trainer.precision_name}, {here}"]
        opening += [*describe_classes(data, split), *starting]
    progress.environment, progress.precision = here, trainer.precision_name

    pool, classes, predict = trainer.pool, data.classes, trainer.predict
    every = [Accuracy(name, pool.held_out.get(name), classes, predict) for name in ("validation", "test")]
    labeled_classes = effective_classes(pool.class_shares().tolist())
    every.append(CollapseWatch(classes, labeled_classes, trainer.method.collapse_hint, progress))
    for hook in hooks:
        hook.start(trainer, progress.beside.setdefault("hooks", {}).setdefault(type(hook).__name__, {}))
    session = Session(trainer, progress, [*every, *hooks], data.spec(), split, opening)
    if progress.start:
        session.hooks.append(
            PseudoLabelStage(config.pseudo_label, progress, pool, classes, predict, session.evaluate, data.files)
        )
    return session


def read_finished(run: RunDirectory, config: Config, ranks: DistributedContext) -> dict[str, Any] | None:
    """Return the results of a run that is finished, else None; one that is to become longer is not.

    Raises:
        UserError: if it is a round under other settings than ``config`` has.
    """
    results = ranks.from_first(run.read_results)
    if results is not None:
        check_round(run, config, results.get("pseudo_label", {}).get("start", 0))
    return results


def make_trainer(
    config: Config,
    data: ImageData,
    split: Split,
    device: torch.device,
    ranks: DistributedContext = SINGLE_PROCESS,
    decide_precision: Callable[[Callable[[], str]], str] = lambda choose: choose(),
    progress: Progress | None = None,
) -> Trainer:
    """Build what a config says, at step 0.

    Args:
        config: the run's.
        data: the images.
        split: what they are used for.
        device: this rank's.
        ranks: the processes that train together.
        decide_precision: called with what chooses the precision by config, network and processor.
        progress: of the run; it tells where schedules begin and end.

    Raises:
        UserError: if the config asks for what these images cannot give.
    """
    batch_size = ranks.share_batch(config.train.batch_size)
    progress = progress or Progress()
    settings = config.data
    strong = config.pseudo_label.strong_augmentation
    pool = Pool(data, split, device, config.seed, settings.flip, settings.crop_padding, strong, settings.rotate)
    check_room(config.model, len(data.classes), data.images.shape[3], device)
    network = build_network(config.model, len(data.classes), data.images.shape[3], config.seed)
    length = progress.method_steps or config.train.steps - progress.method_start
    num_features = network.dense.in_features
    task = MethodContext(data.classes, pool.class_shares(), batch_size, length, num_features, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # for what a method draws as it is made
        method = METHODS[config.method](config.method_settings, task)
    if method.num_views and not split.unlabeled:
        raise UserError("data: no image is left to be unlabeled; set data.labeled_as_unlabeled=true or fewer labels")
    if method.predicts_rotation and settings.rotate:
        raise UserError(f"data.rotate: {config.method} learns by how much views are turned; choose one of the two")
    if (method.num_strong_views or strong) and data.images.shape[3] not in (1, 3):
        raise UserError(f"data: strong views are of gray or RGB images, these have {data.images.shape[3]} channels")
    precision = decide_precision(lambda: choose_precision(config.train.precision, device, network, data.shape))
    trainer = Trainer(config.train, pool, network, method, precision, ranks)
    trainer.begun_at, trainer.method_begun_at = progress.start, progress.method_start
    return trainer


def find_split(run: RunDirectory, config: Config, data: ImageData) -> Split:
    """Return the run's split: the one it has, the one that the config names, or a new one.

    Raises:
        UserError: if the split cannot be had or does not fit the images.
    """
    settings = config.data
    kept = run.split_file.exists() and not run.starts_over
    file = run.split_file if kept else settings.split_file and Path(settings.split_file)
    test = data.test_fingerprint()
    if file:
        split = read_split(file, data)
        if file == run.split_file and split.test_fingerprint not in (None, test):
            raise UserError(
                f"{run.path}: its test images have changed; put them back, or measure with predict.py on the new ones"
            )
    else:
        split = make_split(data, settings, config.seed)
    return replace(split, test_fingerprint=test)


def kept_precision(run: RunDirectory, config: Config, progress: Progress) -> str | None:
    """Return the precision that a run began with, None if it has not begun.

    Raises:
        UserError: if the config asks for another.
    """
    if not progress.step:
        return None
    kept = progress.precision
    if not kept and " on the CPU " in progress.environment:  # earlier versions wrote none, and chose so
        kept = "float32" if run.config.train.precision == "auto" else run.config.train.precision
    asked = config.train.precision
    if kept and asked not in ("auto", kept):
        raise UserError(
            f"{run.path}: has been trained in {kept}; train.precision={asked} would make it another run: "
            "use another run directory, or train.precision=auto"
        )
    return kept or None


def resume(trainer: Trainer, state: dict[str, Tensor], progress: Progress, path: Path) -> None:
    """Bring ``trainer`` to a checkpoint of the run at ``path``.

    Where another method begins with a round, its state is its own, not that of the run that the checkpoint is of.

    Raises:
        UserError: if it is not one of this trainer.
    """
    if 0 < progress.step == progress.start == progress.method_start:
        heads = range(len([*trainer.model.parameters()]), len(state))  # numbers in the optimizer
        of_method = ("totals", "method.", "head.", *(f"optimizer.{number}." for number in heads))
        own = {name: value for name, value in trainer.state().items() if name.startswith(of_method)}
        state = {name: value for name, value in state.items() if not name.startswith(of_method)} | own
    try:
        trainer.load_state(state, progress.step)
    except ValueError as error:
        raise UserError(f"{path}: the checkpoint at step {progress.step} does not fit ({error})") from None


def start_from(source: str, trainer: Trainer, classes: list[str], ranks: DistributedContext) -> list[str]:
    """Give ``trainer`` the averaged weights of another run, and return lines that say so.

    Weights of another shape, as those of the last layer are where the number of classes is another, start anew.

    Args:
        source: a run directory or a model.safetensors.
        trainer: at step 0.
        classes: names.
        ranks: the first reads.

    Raises:
        UserError: if there are no weights, or those of another network.
    """

    def read() -> tuple[dict[str, Tensor], list[str]]:
        model = load_model(source)
        return model.network.state_dict(), model.classes

    weights, known = ranks.from_first(read)
    ours = trainer.model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in ours and value.shape == ours[name].shape}
    others = [name for name in ours if name not in fitting]
    if ours.keys() != weights.keys() or len(others) > len(ours) // 2:
        raise UserError(f"init_from: {source} is of another network; give the same model.* as it has")
    state = trainer.state()
    for name, value in fitting.items():
        for part in ("model", "ema"):
            if f"{part}.{name}" in state:
                state[f"{part}.{name}"] = value
    trainer.load_state(state, 0)
    lines = [f"starts from the weights of {source}" + (f", but for {', '.join(others)}" if others else "")]
    if not others and known != classes:
        lines.append(f"note: these were of the classes {', '.join(known)}")
    return lines
