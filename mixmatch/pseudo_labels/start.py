"""How a pseudo-label stage starts from a trained run.

A stage is a run whose first checkpoint is the newest one of another run, its parent: same files, same resume.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mixmatch.config import (
    INTERVAL_KEYS,
    RESUMABLE_KEYS,
    Config,
    PseudoLabelSettings,
    apply_overrides,
    differing_pseudo_label_keys,
    load_config,
)
from mixmatch.errors import UserError
from mixmatch.output import log
from mixmatch.runs.directory import RunDirectory
from mixmatch.runs.progress import Progress
from mixmatch.runs.results import StageResults

SELECTION_KEYS = [f"pseudo_label.{name}" for name in ("select", "threshold", "fraction", "refresh_every")]
MAX_STAGE_STEPS = 65_536  # of a stage whose length is not set
OTHER_DIRECTORY = "use another pseudo_label.name (or --output-dir of pseudo_label.py)"


class StageStart(NamedTuple):
    """The first checkpoint of a stage, and the split of its parent."""

    state: dict[str, Tensor]
    progress: Progress
    split_file: Path


def stage_path(parent: Path, settings: PseudoLabelSettings) -> Path:
    """Return the default directory of a stage: next to its parent, named after its method or its rule."""
    if parent.name in ("", ".."):
        parent = parent.resolve()
    rules = {"none": "control", "threshold": f"threshold-{settings.threshold:g}", "top": f"top-{settings.fraction:g}"}
    return parent.with_name(f"{parent.name}-{settings.name or settings.method or rules[settings.select]}")


def check_stage_path(stage: Path, config: Config) -> None:
    """Raise UserError if the directory of a stage contains an ordinary run, or a stage by another ``config``."""
    run = RunDirectory(stage)
    if run.can_continue():
        start_step, _ = _start_of(run)
        check_stage(stage, run.read_config(), stage_config(config, start_step), start_step, config.method)


def _start_of(stage: RunDirectory) -> tuple[int, str]:
    """Return the first step of a stage that has begun, and its parent's method.

    Raises:
        UserError: if it is an ordinary run, or has neither results nor a usable checkpoint.
    """
    start: Progress | StageResults | None
    if results := stage.read_results():  # its checkpoints may have been deleted
        start = results.pseudo_label
    elif checkpoint := stage.load_newest():
        start = checkpoint[1]
    else:
        raise UserError(f"{stage.path}: has no checkpoint to continue; {OTHER_DIRECTORY}")
    if start is None or not start.start_step:
        raise UserError(f"{stage.path}: is an ordinary run, not a pseudo-label stage; {OTHER_DIRECTORY}")
    return start.start_step, start.parent_method


def stage_config(config: Config, start_step: int) -> Config:
    """Return the config that a stage trains with and stores.

    Args:
        config: the parent's, with the stage's ``pseudo_label`` section.
        start_step: the parent's last step.
    """
    settings = config.pseudo_label
    steps = settings.steps or min(start_step, MAX_STAGE_STEPS)
    train = {"steps": start_step + steps, "lr_schedule": settings.lr_schedule or config.train.lr_schedule}
    return config.model_copy(
        update={
            "method": settings.method or config.method,
            "train": config.train.model_copy(update=train),
            "pseudo_label": settings.model_copy(update={"enabled": False, "name": None, "steps": steps}),
        }
    )


def find_stage(parent: Path, path: Path | None, overrides: Sequence[str]) -> tuple[Config, Path]:
    """Return the config of a stage, before ``stage_config``, and its directory.

    Args:
        parent: the run directory of the parent. If it is gone, the stage's own config is used.
        path: the run directory of the stage; None for ``stage_path``.
        overrides: ``key=value``.

    Raises:
        UserError: if neither parent nor stage exists, or an override is not allowed.
    """
    source = parent
    if not (parent / "config.yml").exists():
        ours = [text for text in overrides if text.startswith("pseudo_label.")]
        stage = path or stage_path(parent, load_config(None, ours).pseudo_label)
        if (stage / "config.yml").exists():
            source = path = stage
    config = apply_overrides(RunDirectory(source).read_config(), overrides)
    check_overrides(config, overrides)
    return config, path or stage_path(parent, config.pseudo_label)


def check_overrides(config: Config, overrides: Sequence[str]) -> None:
    """Raise UserError if ``overrides`` contain a key that a stage cannot change.

    Args:
        config: with the overrides.
        overrides: ``key=value``.
    """
    keys, method = [*RESUMABLE_KEYS, *INTERVAL_KEYS], config.pseudo_label.method
    sections = ["pseudo_label", *filter(None, [method])]
    for text in overrides:
        key = text.partition("=")[0]
        if key not in keys and key.partition(".")[0] not in sections:
            allowed = ", ".join([*(f"{section}.*" for section in sections), *keys])
            raise UserError(f"{key}: cannot be changed for a pseudo-label stage; allowed: {allowed}")
        if method is not None and key in SELECTION_KEYS:
            raise UserError(f"{key}: is not used with pseudo_label.method={method}; add pseudo_label.method=null")


def start_stage(
    parent: Path, path: Path, config: Config, allow_unfinished: bool = False
) -> tuple[Config, StageStart | None]:
    """Prepare a stage. Nothing is written.

    Args:
        parent: the run directory of the parent. It is not needed to continue a stage.
        path: the run directory of the stage.
        config: from ``find_stage``.
        allow_unfinished: accept a parent that is not finished.

    Returns:
        The stage's config; and its first checkpoint, None to continue the stage that ``path`` contains.

    Raises:
        UserError: if the parent has no usable checkpoint or is not finished, or ``path`` contains another run.
    """
    stage, run = RunDirectory(path), RunDirectory(parent)
    if stage.can_continue():
        return _continued_config(stage, run, config), None

    saved = run.load_newest()
    if saved is None:
        raise UserError(f"{parent}: has no checkpoint; train it first")
    state, progress = saved
    results = run.read_results()
    if not allow_unfinished and (results is None or progress.step < results.steps):
        action = "continue it" if results is None else "delete its results.json and continue it"
        raise UserError(
            f"{parent}: is not finished, its newest intact checkpoint is at step {progress.step}; {action}, or add "
            "--allow-unfinished"
        )
    # A method's schedules begin with the stage; without a method, the parent's stay where they ended.
    own_schedules = config.pseudo_label.method is not None
    num_steps = progress.method_num_steps or config.train.steps - progress.method_start_step
    first = Progress(
        step=progress.step,
        start_step=progress.step,
        parent_method=config.method,
        method_start_step=progress.step if own_schedules else progress.method_start_step,
        method_num_steps=None if own_schedules else num_steps,
        environment=progress.environment,
        precision=progress.precision,
    )
    return stage_config(config, progress.step), StageStart(state, first, run.split_file)


def _continued_config(stage: RunDirectory, parent: RunDirectory, config: Config) -> Config:
    """Return the config of a stage that exists; raise UserError if ``config`` or the parent is another one."""
    start_step, parent_method = _start_of(stage)
    method = config.method
    parent_exists = (parent.path / "config.yml").exists()
    if parent_exists and method != parent_method:
        raise UserError(
            f"{stage.path}: continues a run by {parent_method}, but {parent.path} is now one by {method}; "
            f"{OTHER_DIRECTORY}"
        )
    newest = parent.newest_step()
    if newest > start_step:
        log.info(f"note: {stage.path} starts from step {start_step} of {parent.path}, which is now at step {newest}")
    config = stage_config(config, start_step)
    check_stage(stage.path, stage.read_config(), config, start_step, method if parent_exists else "")
    return config


def check_stage(path: Path, stored: Config, config: Config, start_step: int, parent_method: str = "") -> None:
    """Refuse to continue a stage with other settings. Ordinary runs pass.

    Args:
        path: the run directory.
        stored: its config.
        config: to continue with.
        start_step: of the run; above 0 in stages.
        parent_method: if known, its section is compared too.

    Raises:
        UserError: naming the keys that differ.
    """
    if not start_step:
        return
    differing = differing_pseudo_label_keys(stored, config, parent_method)
    if differing:
        raise UserError(f"{path}: is a stage with other settings: {', '.join(differing)}; {OTHER_DIRECTORY}")
    if config.train.steps != start_step + (stored.pseudo_label.steps or 0):
        raise UserError(f"{path}: train.steps and pseudo_label.steps of a pseudo-label stage cannot be changed")
