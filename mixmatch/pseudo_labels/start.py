"""How a round of pseudo-labels is started on a trained run, and where it goes.

A round is an ordinary run whose first checkpoint is another run's last: same files, same resume.
"""

from collections.abc import Sequence
from pathlib import Path

from mixmatch.config import Config, PseudoLabelSettings, differing_keys_of_rounds, load_config, override
from mixmatch.errors import UserError
from mixmatch.files import read_file
from mixmatch.runs.directory import RunDirectory, open_run
from mixmatch.runs.progress import Progress


def round_path(parent: Path, settings: PseudoLabelSettings) -> Path:
    """Return where a round on ``parent`` goes if nothing else is said: beside it, named after its rule."""
    if parent.name in ("", ".."):
        parent = parent.resolve()
    if settings.name is not None:
        return parent.with_name(f"{parent.name}-{settings.name}")
    detail = {"none": "control", "threshold": f"threshold-{settings.threshold:g}", "method": settings.method}
    name = detail.get(settings.select, f"{settings.select}-{settings.fraction:g}")
    return parent.with_name(f"{parent.name}-{name}" + "-strong" * settings.strong_augmentation)


def check_overrides(config: Config, overrides: Sequence[str], also: Sequence[str] = ()) -> None:
    """Refuse overrides of keys that a round cannot have otherwise than the run before it.

    Args:
        config: of the round, the overrides laid over it.
        overrides: ``key=value``.
        also: keys that may be changed beside ``pseudo_label`` and the section of its method.

    Raises:
        UserError: naming the key.
    """
    sections = ["pseudo_label"]
    if config.pseudo_label.select == "method":
        sections.append(config.pseudo_label.method)
    for text in overrides:
        key = text.partition("=")[0]
        if key.partition(".")[0] not in sections and key not in also:
            allowed = [f"{section}.*" for section in sections]
            raise UserError(f"{key}: belongs to the run; a round can change {', '.join((*allowed, *also))}")


def find_round(parent: Path, path: Path | None, overrides: Sequence[str]) -> tuple[Config, Path]:
    """Return the config of a round on ``parent``, and where it goes or is.

    A round that was begun needs its parent no more: it says itself what it is if that is gone.

    Args:
        parent: the run directory.
        path: of the round; None for ``round_path``.
        overrides: of the parent's config, ``pseudo_label.select=top`` and the like.

    Raises:
        UserError: if there is neither, or an override is not allowed.
    """
    try:
        config = override(RunDirectory(parent).read_config(), overrides)
    except UserError:
        settings = load_config(None, [text for text in overrides if text.startswith("pseudo_label.")]).pseudo_label
        path = path or round_path(parent, settings)
        if (parent / "config.yml").exists() or not (path / "config.yml").exists():
            raise
        return override(RunDirectory(path).read_config(), overrides), path
    return config, path or round_path(parent, config.pseudo_label)


def start_round(parent: Path, path: Path, config: Config, allow_unfinished: bool = False) -> Config:
    """Make ``path`` a run that goes on from the newest checkpoint of ``parent``, unless it is one already.

    Args:
        parent: the run directory of a finished run.
        path: the run directory of the round.
        config: the parent's config, with the ``pseudo_label`` section of the round.
        allow_unfinished: take a parent that is not finished.

    Returns:
        The round's config: ``train.steps`` is the parent's plus ``pseudo_label.steps``.

    Raises:
        UserError: if the parent has no usable checkpoint, or is not finished, or the round cannot be written, or if
            ``path`` is a run that is no round.
    """
    begun = RunDirectory(path).load_newest()
    if begun is not None and (path / "config.yml").exists():  # it needs its parent no more, whatever became of that
        if not begun[1].start:
            raise UserError(f"{path}: is a run of its own, no round; use another directory (--output-dir)")
        stored, before = RunDirectory(path).read_config(), begun[1].method_before
        there = (parent / "config.yml").exists()  # else ``config`` is the round's own
        if there and before not in ("", config.method):
            raise UserError(
                f"{path}: goes on from a run by {before}, {parent} is now one by {config.method}; "
                "use another directory (--output-dir)"
            )
        _check_settings(path, stored, config, config.method if there else "")
        reached = RunDirectory(parent).newest_step()
        if reached > begun[1].start:
            print(
                f"note: {path} goes on from step {begun[1].start} of {parent}, which is at {reached}; --output-dir starts anew"
            )
        return config_of_round(config, begun[1].start)
    run = RunDirectory(parent)
    results = run.read_results()
    if results is None and not allow_unfinished:
        raise UserError(f"{parent}: is no finished run; continue it first, or add --allow-unfinished")
    saved = run.load_newest()
    if saved is None:
        raise UserError(f"{parent}: has no checkpoint; train it first with main.py --run-dir {parent}")
    state, progress = saved
    if results is not None and progress.step < results["steps"] and not allow_unfinished:
        raise UserError(
            f"{parent}: its last checkpoint is not whole, only one of step {progress.step} is; remove its results.json "
            "and train it to its end again, or add --allow-unfinished"
        )
    planned, method = config.train.steps, config.method
    config = config_of_round(config, progress.step)
    with open_run(path, config) as child:
        if (path / "config.yml").exists() and child.load_newest() is not None:
            return config  # another process began the round before this one had the lock
        try:
            child.write("split.json", read_file(run.split_file))
        except OSError as error:
            raise UserError(f"{run.split_file}: cannot be read ({error.strerror})") from None
        spec = run.read_images()
        if spec is not None:
            child.write_images(spec)
        anew = config.pseudo_label.select == "method"  # else schedules stay where the parent's have come to
        start = Progress(
            step=progress.step,
            start=progress.step,
            method_start=progress.step if anew else progress.method_start,
            method_before=method,
            method_steps=0 if anew else progress.method_steps or planned - progress.method_start,
            environment=progress.environment,
            precision=progress.precision,
        )
        child.save(state, start)
        child.write_config()  # last: without it this is no run yet, and nobody takes it for one from step 0
    return config


def check_round(run: RunDirectory, config: Config, start: int) -> None:
    """Refuse to go on with a run that is a round under other settings of rounds than those stored.

    Args:
        run: as ``open_run`` gives it.
        config: that it is to go on under.
        start: the step at which the run began; it is a round if that is above 0.

    Raises:
        UserError: naming the keys that differ.
    """
    if start:
        _check_settings(run.path, run.config, config)
        if config.train.steps != start + run.config.pseudo_label.steps:
            raise UserError(f"{run.path}: is a round; its length, pseudo_label.steps, stays what it is")


def _check_settings(path: Path, stored: Config, config: Config, before: str = "") -> None:
    differing = differing_keys_of_rounds(stored, config, before)
    if differing:
        raise UserError(
            f"{path}: holds a round with other settings: {', '.join(differing)}; use another directory (--output-dir)"
        )


def config_of_round(config: Config, start: int) -> Config:
    """Return what is stored as a round's config: its parent's with the round's settings, going on from ``start``."""
    settings = config.pseudo_label
    train = {"steps": start + settings.steps, "lr_schedule": settings.lr_schedule or config.train.lr_schedule}
    return config.model_copy(
        update={
            "method": settings.method if settings.select == "method" else config.method,
            "train": config.train.model_copy(update=train),
            "pseudo_label": settings.model_copy(update={"enabled": False, "name": None}),
        }
    )
