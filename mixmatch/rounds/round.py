"""A round of pseudo-labels: how one is started on a trained run, and what happens each time labels are selected.

A round is an ordinary run whose first checkpoint is another run's last: same files, same resume. What a round has to
remember beside that, its ``Round`` keeps in ``Progress.beside``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixmatch.config import Config, PseudoLabelSettings, differing_keys_of_rounds, load_config, override
from mixmatch.data.pool import Pool
from mixmatch.data.views import to_float
from mixmatch.errors import UserError
from mixmatch.files import read_file
from mixmatch.hooks import Hook
from mixmatch.records.lettering import show_name
from mixmatch.records.pictures import draw_confusion, draw_grid, to_png
from mixmatch.records.progress import Progress
from mixmatch.records.recorder import Recorder
from mixmatch.records.run import RunDirectory, open_run
from mixmatch.rounds.calibration import calibrate, draw_reliability
from mixmatch.rounds.rules import (
    confusion,
    describe_selection,
    select,
    threshold_table,
    to_csv,
)

MISTAKES_SHOWN = 64
PICTURES = {
    "selection": "what was selected: of each true class, in rows, percent labelled as each class, in columns",
    "confident_mistakes": "the most confident predictions on unlabelled images that are wrong",
    **{
        f"reliability_{name}": f"how often predictions on the {name} images are right (blue), by confidence; in red "
        "what is missing, or too much"
        for name in ("unlabeled", "validation", "test")
    },
}


class Round(Hook):
    """What a round does beside the training loop: select labels at its start, and anew every ``refresh_every`` steps.

    The true classes of unlabelled images serve what is printed and drawn, and nothing else.
    """

    def __init__(
        self,
        settings: PseudoLabelSettings,
        progress: Progress,
        pool: Pool,
        classes: list[str],
        predict: Callable[[Tensor, Tensor | None], Tensor],
        evaluate: Callable[[int, Recorder], dict[str, float | None]],
        files: list[str] | None = None,
    ) -> None:
        """Take up a round where ``progress`` says that it is.

        Args:
            settings: the ``pseudo_label`` section.
            progress: of the run; what the round remembers is kept in its ``beside``.
            pool: the images; what is selected becomes labelled there.
            classes: names.
            predict: called with images (n, h, w, c) uint8 and, or None, an index (m,); returns (m, C) probabilities.
            evaluate: called with the step and the recorder; returns accuracies by name.
            files: of the training images, if they are of files.
        """
        self.settings, self.begun_at, self.pool, self.classes = settings, progress.start, pool, classes
        self._predict, self._evaluate, self._beside, self.files = predict, evaluate, progress.beside, files

    def before_step(self, step: int, recorder: Recorder) -> list[str]:
        """Select labels, if that is due before training step ``step``, and return lines for a person."""
        since = step - self.begun_at
        if since and not (self.settings.refresh_every and since % self.settings.refresh_every == 0):
            return []
        if not since:
            self._beside["before"] = self._evaluate(step, recorder)
        entry = self._select(step, recorder)
        self._beside["selections"] = [*self._beside.get("selections", []), entry]
        return describe_entry(self.settings, entry)

    def results(self) -> dict[str, Any]:
        """Return what results.json tells of the round."""
        return {
            "pseudo_label": {
                **self.settings.model_dump(),
                "start": self.begun_at,
                "before": self._beside["before"],
                "selections": self._beside["selections"],
            }
        }

    def _select(self, step: int, recorder: Recorder) -> dict[str, Any]:
        """Predict every image of the original unlabelled set, select, and let the pool use what is selected.

        Writes pseudo_labels.csv and pictures to the run directory, pictures to TensorBoard.

        Returns:
            An entry for results.json.
        """
        pool, classes = self.pool, self.classes
        index = pool.split_unlabeled[~torch.isin(pool.split_unlabeled, pool.split_labeled)]
        probabilities = self._predict(pool.images, index).cpu()
        truth, index = pool.labels[index].cpu(), index.cpu()
        selection = select(probabilities, pool.class_shares(), self.settings)
        pool.add_labels(index[selection.chosen], selection.labels[selection.chosen])

        table = threshold_table(probabilities, truth)
        entry: dict[str, Any] = {"step": step, **describe_selection(selection, truth, classes), "thresholds": table}
        rows = to_csv(index, probabilities, selection, truth, classes, self.files)
        recorder.file("pseudo_labels.csv", rows.encode())
        sets = {"unlabeled": (probabilities, truth)}
        for name, (images, labels) in pool.held_out.items():
            sets[name] = self._predict(images, None).cpu(), labels.cpu()
        entry["calibration"], pictures = _calibrate_sets(sets)
        pictures["selection"] = draw_confusion(confusion(selection, truth, len(classes)).numpy(), classes)
        mistakes = self._draw_mistakes(index, probabilities, truth)
        if mistakes is not None:
            pictures["confident_mistakes"] = mistakes
        for name, picture in pictures.items():
            recorder.file(f"{name}.png", to_png(picture))
            recorder.picture(f"pseudo_labels/{name}", picture, step, PICTURES[name], classes)
        return entry

    def _draw_mistakes(self, index: Tensor, probabilities: Tensor, truth: Tensor) -> Image.Image | None:
        confidence, labels = probabilities.max(dim=1)
        wrong = torch.nonzero((truth >= 0) & (labels != truth)).flatten()
        if not len(wrong):
            return None
        worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES_SHOWN]
        captions = [
            f"{100 * confidence[i]:.1f}% {show_name(self.classes, int(labels[i]))}\n"
            f"is {show_name(self.classes, int(truth[i]))}"
            for i in worst.tolist()
        ]
        images = self.pool.images[index[worst].to(self.pool.device)]
        return draw_grid(to_float(images).cpu().numpy(), captions, columns=4)


def _calibrate_sets(
    sets: dict[str, tuple[Tensor, Tensor]],
) -> tuple[dict[str, dict[str, float]], dict[str, Image.Image]]:
    """Return calibration and reliability diagram for each set of predictions and true classes, where any are known."""
    entries, pictures = {}, {}
    for name, (predicted, true) in sets.items():
        known = true >= 0
        if known.any():
            calibration = calibrate(predicted[known], true[known])
            pictures[f"reliability_{name}"] = draw_reliability(name, calibration)
            entries[name] = {
                "expected_calibration_error": calibration.error,
                "above_99": calibration.above_99,
                "wrong_above_99": calibration.wrong_above_99,
            }
    return entries, pictures


def round_path(parent: Path, settings: PseudoLabelSettings) -> Path:
    """Return where a round on ``parent`` goes if nothing else is said: beside it, named after its rule."""
    detail = {"none": "control", "threshold": f"threshold-{settings.threshold:g}"}
    if parent.name in ("", ".."):
        parent = parent.resolve()
    name = detail.get(settings.select, f"{settings.select}-{settings.fraction:g}")
    return parent.with_name(f"{parent.name}-{name}" + "-strong" * settings.strong_augmentation)


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
        UserError: if the parent has no usable checkpoint, or is not finished, or the round cannot be written.
    """
    begun = RunDirectory(path).load_newest()
    if begun is not None:  # it needs its parent no more, whatever became of that
        _check_settings(path, RunDirectory(path).read_config(), config)
        reached = RunDirectory(parent).newest_step()
        if reached > begun[1].start:
            print(
                f"note: {path} goes on from step {begun[1].start} of {parent}, which is at {reached}; --to starts anew"
            )
        return config_of_round(config, begun[1].start)
    run = RunDirectory(parent)
    results = run.read_results()
    if results is None and not allow_unfinished:
        raise UserError(f"{parent}: is no finished run; continue it first, or add --allow-unfinished")
    saved = run.load_newest()
    if saved is None:
        raise UserError(f"{parent}: has no checkpoint; train it first with main.py --run {parent}")
    state, progress = saved
    if results is not None and progress.step < results["steps"] and not allow_unfinished:
        raise UserError(
            f"{parent}: its last checkpoint is not whole, only one of step {progress.step} is; remove its results.json "
            "and train it to its end again, or add --allow-unfinished"
        )
    config = config_of_round(config, progress.step)
    with open_run(path, config) as child:
        if child.load_newest() is not None:  # another process began the round before this one had the lock
            return config
        child.write_config()
        try:
            child.write("split.json", read_file(run.split_file))
        except OSError as error:
            raise UserError(f"{run.split_file}: cannot be read ({error.strerror})") from None
        spec = run.read_images()
        if spec is not None:
            child.write_images(spec)
        start = Progress(
            step=progress.step,
            start=progress.step,
            environment=progress.environment,
            precision=progress.precision,
        )
        child.save(state, start)
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


def _check_settings(path: Path, stored: Config, config: Config) -> None:
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


def describe_entry(settings: PseudoLabelSettings, entry: dict[str, Any]) -> list[str]:
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
