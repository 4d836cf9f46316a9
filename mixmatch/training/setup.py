"""Sets up a run: reads its data and checkpoint, builds the trainer. Nothing is written to its directory."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mixmatch.config import Config, merge_for_resume
from mixmatch.data import ImageData, load_data
from mixmatch.data.dataset import ImageSpec
from mixmatch.data.memory import describe_place
from mixmatch.data.split import Split, make_split, read_split
from mixmatch.distributed import DistributedContext
from mixmatch.errors import UserError
from mixmatch.evaluation import effective_num_classes
from mixmatch.inference import load_model
from mixmatch.methods import METHODS
from mixmatch.models import NetworkSettings
from mixmatch.pseudo_labels.stage import PseudoLabelStage
from mixmatch.pseudo_labels.start import StageStart, check_stage
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.progress import Progress
from mixmatch.runs.results import RunResults
from mixmatch.training.build import make_trainer
from mixmatch.training.callbacks import Callback
from mixmatch.training.console import Console
from mixmatch.training.device import describe_environment
from mixmatch.training.evaluators import Accuracy, CollapseWarning, LabeledAccuracy
from mixmatch.training.messages import (
    describe_frozen,
    describe_imbalance,
    describe_rescaled,
    describe_resume,
    describe_run,
    describe_unmeasured,
)
from mixmatch.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingSession:
    """A run that is ready to train.

    Attributes:
        trainer: at step ``progress.step``.
        progress: of the newest checkpoint.
        callbacks: those of every run, and the user's.
        spec: of the images.
        split: which images are used for what.
        messages: start-up lines to print.
    """

    trainer: Trainer
    progress: Progress
    callbacks: list[Callback]
    spec: ImageSpec
    split: Split
    messages: list[str]


def prepare(
    run: RunDirectory,
    config: Config,
    device: torch.device,
    distributed: DistributedContext,
    console: Console,
    callbacks: Sequence[Callback] = (),
    start: StageStart | None = None,
) -> TrainingSession:
    """Read the images, build the trainer, and bring it to the newest checkpoint.

    Args:
        run: the run directory, new or not.
        config: to train with.
        device: of this process.
        distributed: the processes that train together.
        console: shows the progress of decoding.
        callbacks: the user's.
        start: the first checkpoint and the split of a pseudo-label stage, if the run has not begun.

    Raises:
        UserError: if data, split, checkpoint or config are invalid or do not fit.
    """
    with distributed.local_main_process_first():
        data = load_data(config.data, device, console.hide_bars)
    check_same_images(data, distributed)
    checkpoint = distributed.broadcast_from_main(run.load_newest)
    if start is not None:
        checkpoint = start.state, start.progress.model_copy(deep=True)
    elif checkpoint is None and distributed.broadcast_from_main(run.results_file.exists):
        raise UserError(f"{run.path}: is finished, but has no checkpoint to continue; use another --run-dir")
    progress = Progress() if checkpoint is None else checkpoint[1]
    split = distributed.broadcast_from_main(lambda: find_split(run, config, data, start, progress.start_step))
    if progress.precision:
        check_precision(run, config, progress.precision)
    trainer = make_trainer(config, data, split, device, distributed, progress)
    precision = trainer.precision
    if config.train.patience is not None and "validation" not in trainer.dataset.held_out:
        raise UserError("train.patience: needs validation images; set data.num_validation above 0")

    environment = describe_environment(device, distributed)
    messages = [f"note: {note}" for note in data.notes]
    if checkpoint is not None:
        load_checkpoint(trainer, *checkpoint, run.path)
        messages += describe_resume(run.path, progress, config.train.steps, environment)
    else:
        where = describe_place(trainer.dataset.place, device)
        messages += [f"{run.path}: {describe_run(config, data, split)} in {precision}, {environment}, images {where}"]
        messages += describe_imbalance(data, split) + describe_unmeasured(config, data, split)
        if config.init_from is not None:
            loaded = load_weights(config.init_from, trainer, data.classes, config.model, distributed)
        else:
            loaded = load_pretrained(trainer, config.model, distributed)
        messages += loaded or describe_frozen(config.model)
        if loaded and config.train.optimizer == "muon":
            messages += describe_rescaled(trainer.model)
    progress.environment, progress.precision = environment, precision

    num_labeled_classes = effective_num_classes(trainer.dataset.class_frequencies().tolist())
    every = [
        Accuracy("validation", data.classes),
        Accuracy("test", data.classes),
        LabeledAccuracy(),
        CollapseWarning(data.classes, num_labeled_classes, trainer.method.collapse_hint),
    ]
    if progress.start_step:
        every.append(PseudoLabelStage(config.pseudo_label, progress, data.classes, data.files))
    every += callbacks
    start_callbacks(every, trainer, progress)
    return TrainingSession(trainer, progress, every, data.spec(), split, messages)


def stored_config(run: RunDirectory, config: Config) -> Config:
    """Return the config to store: ``config``, or that of a run that has begun with the new intervals and length.

    Raises:
        UserError: if ``config`` differs in other keys.
    """
    if not run.has_begun():
        return config
    if not run.config_file.exists():
        saved = run.load_newest()
        if saved is not None and saved[1].step > saved[1].start_step:  # else interrupted while it began
            raise UserError(f"{run.path}: has checkpoints but no config.yml; restore it, or remove the directory")
        return config
    try:
        is_finished = run.read_results(config.train) is not None
        return merge_for_resume(run.read_config(), config, run.newest_step(), is_finished)
    except UserError as error:
        raise UserError(f"{run.path}: {error}") from None


def find_results(run: RunDirectory, stored: Config, config: Config) -> RunResults | None:
    """Return the results of a run that is finished, else None, also if it is being made longer.

    Raises:
        UserError: if its precision or, of a pseudo-label stage, other settings are not those of ``config``.
    """
    results = run.read_results(config.train)
    if results is not None:
        check_precision(run, config, results.precision)
        if results.pseudo_label is not None:
            check_stage(run.path, stored, config, results.pseudo_label.start_step)
    return results


def check_precision(run: RunDirectory, config: Config, precision: str) -> None:
    """Raise UserError if ``config`` asks for another precision than that of a run that has begun."""
    if config.train.precision not in ("auto", precision):
        raise UserError(
            f"{run.path}: was started in {precision}, which cannot change; use train.precision=auto, or another "
            "--run-dir"
        )


def moved_data(stored: Config, config: Config) -> dict[str, str | None]:
    """Return ``root``, as an absolute path, and ``labels`` of ``config.data`` if they differ from the stored ones."""
    root, labels = Path(config.data.root).absolute(), getattr(config.data, "labels", None)
    moved: dict[str, str | None] = {}
    if root != Path(stored.data.root).absolute():
        moved["root"] = str(root)
    if labels != getattr(stored.data, "labels", None):
        moved["labels"] = labels
    return moved


def check_split(run: RunDirectory, config: Config, device: torch.device, console: Console) -> None:
    """Raise UserError if a run was trained on other images or labels than those that ``config`` names."""
    read_split(run.split_file, load_data(config.data, device, console.hide_bars))


def check_same_images(data: ImageData, distributed: DistributedContext) -> None:
    """Raise UserError if the processes, which may be on several machines, have read different images."""
    if distributed.world_size > 1:
        text = f"{data.fingerprint()} {data.test_fingerprint()}"
        number = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
        highest, lowest = distributed.all_reduce_max([number, -number])
        if highest != -lowest:
            error = UserError(
                "data: the processes have read different images; give every machine the same files and packages"
            )
            error.printed_by_main = not distributed.is_main
            raise error


def find_split(run: RunDirectory, config: Config, data: ImageData, start: StageStart | None, start_step: int) -> Split:
    """Return the split of the run or of its parent, the one that the config names, or a new one.

    Raises:
        UserError: if it is invalid or does not fit the images.
    """
    settings, test_fingerprint = config.data, data.test_fingerprint()
    if settings.labeled_as_unlabeled == "auto":
        settings = settings.model_copy(update={"labeled_as_unlabeled": METHODS[config.method].labeled_as_unlabeled})
    if start is not None:
        split = read_split(start.split_file, data)
    elif run.has_begun() and (run.split_file.exists() or start_step):
        split = read_split(run.split_file, data)  # a new one could differ from that of a stage's parent
    elif settings.split_file:
        split = replace(read_split(Path(settings.split_file), data), test_fingerprint=None)
        if settings.num_labeled not in ("all", len(split.labeled)):
            raise UserError(
                f"data.num_labeled: is {settings.num_labeled}, but data.split_file labels {len(split.labeled)} images; "
                f"set data.num_labeled={len(split.labeled)}"
            )
        if settings.num_validation not in (0, "auto", len(split.validation)):
            raise UserError(
                f"data.num_validation: is {settings.num_validation}, but data.split_file has {len(split.validation)} "
                "validation images; set data.num_validation=auto"
            )
        unlabeled = {*split.unlabeled} - {*split.labeled}
        if settings.labeled_as_unlabeled:
            unlabeled |= {*split.labeled}
        split = replace(split, unlabeled=sorted(unlabeled))
    else:
        split = make_split(data, settings, config.seed)
    if split.test_fingerprint not in (None, test_fingerprint):
        raise UserError(f"{run.path}: its test images have changed; restore them, or predict the new ones")
    return replace(split, test_fingerprint=test_fingerprint)


def load_checkpoint(trainer: Trainer, state: dict[str, Tensor], progress: Progress, path: Path) -> None:
    """Bring ``trainer`` to a checkpoint.

    At the start of a stage by a method, its state and head are new: the checkpoint's are of the parent's method.

    Raises:
        UserError: if the checkpoint does not fit.
    """
    if 0 < progress.step == progress.start_step == progress.method_start_step:
        of_method = ("metrics", "method.", "head.", "optimizer.head.")
        own = {name: value for name, value in trainer.state().items() if name.startswith(of_method)}
        state = {name: value for name, value in state.items() if not name.startswith(of_method)} | own
    try:
        trainer.load_state(state, progress.step)
    except ValueError as error:
        raise UserError(f"{path}: the checkpoint at step {progress.step} does not fit ({error})") from None


def load_weights(
    source: str, trainer: Trainer, classes: list[str], settings: NetworkSettings, distributed: DistributedContext
) -> list[str]:
    """Start ``trainer`` from the EMA weights of another run, and return lines to print.

    The last layer is loaded only if the classes are the same.

    Args:
        source: a run directory, a checkpoint file or a model.safetensors.
        trainer: at step 0.
        classes: names.
        settings: the ``model`` section.
        distributed: the main process reads.

    Raises:
        UserError: if weights are missing or of another network, or a layer without them would be frozen.
    """

    def read() -> tuple[dict[str, Tensor], list[str], list[object]]:
        try:
            model = load_model(source)
        except UserError as error:
            raise UserError(f"init_from: {error}") from None
        return model.network.state_dict(), model.classes, model.settings.beyond_shapes()

    weights, source_classes, source_beyond = distributed.broadcast_from_main(read)
    ours = trainer.model.state_dict()
    last_layer = {f"dense.{name}" for name in trainer.model.dense.state_dict()}
    fitting = {
        name: value
        for name, value in weights.items()
        if name in ours and value.shape == ours[name].shape and (source_classes == classes or name not in last_layer)
    }
    others = [name for name in ours if name not in fitting]
    depths = trainer.model.layer_depths() if settings.freeze_layers else {}
    frozen = [
        name
        for name in others
        if name not in last_layer and depths.get(name, settings.freeze_layers) < settings.freeze_layers
    ]
    if ours.keys() != weights.keys() or len(others) > len(ours) // 2 or source_beyond != settings.beyond_shapes():
        raise UserError(f"init_from: {source} is of another network; use the same model.* settings")
    if frozen:
        raise UserError(f"model.freeze_layers: freezes {frozen[0]}, which init_from does not have; set it to 0")
    set_initial_weights(trainer, fitting)
    other_classes = ", ".join(source_classes)[:200] if source_classes != classes else ""
    return [
        f"initial weights from {source}"
        + (f", except {', '.join(others)}" if others else "")
        + (f", which were of the classes {other_classes}" if other_classes else "")
    ]


def load_pretrained(trainer: Trainer, settings: NetworkSettings, distributed: DistributedContext) -> list[str]:
    """Start ``trainer`` from the weights that others have trained, if ``settings`` ask for them; return lines to print.

    Raises:
        UserError: if they cannot be read.
    """
    weights = distributed.broadcast_from_main(trainer.model.read_pretrained)
    if not weights:
        return []
    set_initial_weights(trainer, weights)
    others = [name for name, _ in trainer.model.named_parameters() if name not in weights]
    except_for = f", except {', '.join(others)}" if others else ""
    return [f"initial weights: {settings.display_name()}, pretrained{except_for}"]


def set_initial_weights(trainer: Trainer, weights: dict[str, Tensor]) -> None:
    """Set weights of the network and of its EMA, by the names of ``state_dict``; the others stay as they are."""
    state = trainer.state()
    for name, value in weights.items():
        state |= {key: value for key in (f"model.{name}", f"ema.{name}") if key in state}
    trainer.load_state(state, 0)


def start_callbacks(callbacks: Sequence[Callback], trainer: Trainer, progress: Progress) -> None:
    """Give each callback the trainer and its state.

    Raises:
        UserError: if two have the same name.
    """
    names: set[str] = set()
    for callback in callbacks:
        name = callback.name or type(callback).__name__
        if name in names:
            raise UserError(f"callbacks: two are named {name!r}; set the attribute `name` of one")
        names.add(name)
        state = progress.callback_state.setdefault(name, {})
        callback.start(trainer, state)
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise TypeError(f"callbacks: the state of {name!r} must be JSON, to be in checkpoints ({error})") from None
