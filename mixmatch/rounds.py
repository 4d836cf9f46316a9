"""A round of pseudo-labels: how one is started on a trained run, and what happens each time labels are selected.

A round is an ordinary run whose first checkpoint is another run's last: same files, same resume.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixmatch.augment import to_float
from mixmatch.config import Config, PseudoLabel, differing_keys_of_rounds, load_config
from mixmatch.errors import UserError
from mixmatch.evaluate import predict
from mixmatch.files import write_atomically
from mixmatch.pictures import draw_confusion, draw_grid, to_png
from mixmatch.pseudo_label import (
    calibrate,
    confusion,
    describe_selection,
    draw_reliability,
    select,
    threshold_table,
    to_csv,
)
from mixmatch.recorder import Recorder
from mixmatch.run import Progress, RunDirectory, open_run
from mixmatch.trainer import Trainer

MISTAKES_SHOWN = 64


def round_path(parent: Path, settings: PseudoLabel) -> Path:
    """Return where a round on ``parent`` goes if nothing else is said: beside it, named after its rule."""
    detail = {"none": "control", "threshold": f"threshold-{settings.threshold:g}"}
    if parent.name in ("", ".."):
        parent = parent.resolve()
    name = detail.get(settings.select, f"{settings.select}-{settings.fraction:g}")
    return parent.with_name(f"{parent.name}-{name}" + "-strong" * settings.strong_augmentation)


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
        UserError: if the parent has no usable checkpoint, or is not finished, or the round cannot be written.
    """
    begun = RunDirectory(path).load_newest()
    if begun is not None:  # it needs its parent no more, whatever became of that
        check_round(path, load_config(path / "config.yml"), config)
        return config_of_round(config, begun[1].start)
    run = RunDirectory(parent)
    if run.read_results() is None and not allow_unfinished:
        raise UserError(f"{parent}: is no finished run; continue it first, or add --allow-unfinished")
    saved = run.load_newest()
    if saved is None:
        raise UserError(f"{parent}: has no checkpoint; train it first with main.py --run {parent}")
    state, progress = saved
    config = config_of_round(config, progress.step)
    with open_run(path, config) as child:
        try:
            write_atomically(child.split_file, run.split_file.read_bytes())
        except OSError as error:
            raise UserError(f"{run.split_file}: cannot be read ({error.strerror})") from None
        child.save(state, Progress(step=progress.step, start=progress.step, environment=progress.environment))
    return config


def check_round(path: Path, stored: Config, config: Config) -> None:
    """Refuse to go on with the round at ``path`` under other settings than those stored.

    Raises:
        UserError: naming the keys that differ.
    """
    differing = differing_keys_of_rounds(stored, config)
    if differing:
        raise UserError(
            f"{path}: holds a round with other settings: {', '.join(differing)}; use another directory (--to)"
        )


def config_of_round(config: Config, start: int) -> Config:
    """Return what is stored as a round's config: its parent's with the round's settings, going on from ``start``."""
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"steps": start + config.pseudo_label.steps}),
            "pseudo_label": config.pseudo_label.model_copy(update={"enabled": False}),
        }
    )


def parent_config(parent: Path) -> Config:
    """Return the config of a run directory.

    Raises:
        UserError: if ``parent`` is none.
    """
    if not (parent / "config.yml").exists():
        raise UserError(f"{parent}: is no run directory; --run needs the folder of a finished run")
    return load_config(parent / "config.yml")


def selection_due(settings: PseudoLabel, progress: Progress, step: int) -> bool:
    """Tell whether labels are selected before training step ``step``."""
    if not progress.start:
        return False
    since = step - progress.start
    return since == 0 or bool(settings.refresh_every and since % settings.refresh_every == 0)


def select_labels(trainer: Trainer, classes: list[str], recorder: Recorder) -> tuple[dict[str, Any], list[str]]:
    """Predict every image of the original unlabelled set, select, and let the trainer use what is selected.

    Writes pseudo_labels.csv and pictures to the run directory, pictures to TensorBoard.

    Returns:
        An entry for results.json, and lines for a person.
    """
    settings, step = trainer.config.pseudo_label, trainer.step
    index = trainer.original_unlabeled[~torch.isin(trainer.original_unlabeled, trainer.original_labeled)]
    probabilities = predict(trainer.ema_model, trainer.images, trainer.device, index, trainer.ranks).cpu()
    truth, index = trainer.labels[index].cpu(), index.cpu()
    prior = trainer.labels[trainer.original_labeled].cpu().bincount(minlength=trainer.num_classes).double()
    selection = select(probabilities, prior / prior.sum(), settings)
    trainer.use_pseudo_labels(index[selection.chosen], selection.labels[selection.chosen])

    table = threshold_table(probabilities, truth)
    entry: dict[str, Any] = {"step": step, **describe_selection(selection, truth, classes), "thresholds": table}
    csv = to_csv(index, probabilities, selection, truth, classes)
    recorder.file("pseudo_labels.csv", csv.encode())
    pictures = {"selection": draw_confusion(confusion(selection, truth, len(classes)).numpy(), classes)}
    sets = {"unlabeled": (probabilities, truth)}
    for name, (images, labels) in trainer.held_out.items():
        sets[name] = predict(trainer.ema_model, images, trainer.device, ranks=trainer.ranks), labels
    entry["calibration"] = {}
    for name, (predicted, true) in sets.items():
        known = true >= 0
        if known.any():
            calibration = calibrate(predicted[known].cpu(), true[known].cpu())
            pictures[f"reliability_{name}"] = draw_reliability(name, calibration)
            entry["calibration"][name] = {
                "expected_calibration_error": calibration.error,
                "above_99": calibration.above_99,
                "wrong_above_99": calibration.wrong_above_99,
            }
    mistakes = _draw_mistakes(trainer, index, probabilities, truth, classes)
    if mistakes is not None:
        pictures["confident_mistakes"] = mistakes
    for name, picture in pictures.items():
        recorder.file(f"{name}.png", to_png(picture))
        recorder.picture(f"pseudo_labels/{name}", picture, step)
    return entry, _lines(settings, entry)


def _draw_mistakes(
    trainer: Trainer, index: Tensor, probabilities: Tensor, truth: Tensor, classes: list[str]
) -> Image.Image | None:
    confidence, labels = probabilities.max(dim=1)
    wrong = torch.nonzero((truth >= 0) & (labels != truth)).flatten()
    if not len(wrong):
        return None
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES_SHOWN]
    captions = [
        f"{classes[labels[i]][:6]} {100 * confidence[i]:.1f}%\nis {classes[truth[i]][:9]}" for i in worst.tolist()
    ]
    images = trainer.images[index[worst].to(trainer.device)]
    return draw_grid(to_float(images).cpu().numpy(), captions, columns=8)


def _lines(settings: PseudoLabel, entry: dict[str, Any]) -> list[str]:
    """Return the threshold table and the selection as lines to print."""
    lines = [f"{entry['candidates']} unlabelled images predicted at step {entry['step']}"]
    known = entry["thresholds"][0]["correct"] is not None
    lines.append("  threshold  generated" + ("   correct  precision" if known else ""))
    for row in entry["thresholds"]:
        right = ""
        if known:
            precision = "-" if row["precision"] is None else f"{row['precision']:.2f}%"
            right = f"{row['correct']:>10}{precision:>11}"
        lines.append(f"  {row['threshold']:>9}{row['generated']:>11}{right}")
    if settings.select == "none":
        lines.append("pseudo_label.select=none: nothing is selected, training goes on as the control")
    elif not entry["selected"]:
        lines.append(f"pseudo_label.select={settings.select} selects nothing: training goes on unchanged")
    else:
        precision = "" if entry["precision"] is None else f", {entry['precision']:.2f}% of them correct"
        lines.append(
            f"pseudo_label.select={settings.select} makes {entry['selected']} of them labelled "
            f"({entry['coverage']:.1f}%){precision}"
        )
    return lines
