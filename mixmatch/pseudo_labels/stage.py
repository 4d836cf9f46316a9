"""A round of pseudo-labels: what happens beside training, each time labels are selected.

What a round has to remember beside what every run does, its ``PseudoLabelStage`` keeps in ``Progress.beside``.
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixmatch.config import PseudoLabelSettings
from mixmatch.data.pool import Pool
from mixmatch.data.weak_augmentation import to_float
from mixmatch.pseudo_labels.calibration import calibrate, draw_reliability
from mixmatch.pseudo_labels.rules import (
    confusion,
    describe_selection,
    select,
    threshold_table,
    to_csv,
)
from mixmatch.runs.fonts import show_name
from mixmatch.runs.plots import draw_confusion, draw_grid, to_png
from mixmatch.runs.progress import Progress
from mixmatch.runs.writer import RunWriter
from mixmatch.training.callbacks import Callback

MISTAKES_SHOWN = 64
PICTURES = {
    "selection": "what was selected: of each true class, in rows, percent labeled as each class, in columns",
    "confident_mistakes": "the most confident predictions on unlabeled images that are wrong",
    **{
        f"reliability_{name}": f"how often predictions on the {name} images are right (blue), by confidence; in red "
        "what is missing, or too much"
        for name in ("unlabeled", "validation", "test")
    },
}


class PseudoLabelStage(Callback):
    """What a round does beside the training loop: select labels at its start, and anew every ``refresh_every`` steps.

    The true classes of unlabeled images serve what is printed and drawn, and nothing else.
    """

    def __init__(
        self,
        settings: PseudoLabelSettings,
        progress: Progress,
        pool: Pool,
        classes: list[str],
        predict: Callable[[Tensor, Tensor | None], Tensor],
        evaluate: Callable[[int, RunWriter], dict[str, float | None]],
        files: list[str] | None = None,
    ) -> None:
        """Take up a round where ``progress`` says that it is.

        Args:
            settings: the ``pseudo_label`` section.
            progress: of the run; what the round remembers is kept in its ``beside``.
            pool: the images; what is selected becomes labeled there.
            classes: names.
            predict: called with images (n, h, w, c) uint8 and, or None, an index (m,); returns (m, C) probabilities.
            evaluate: called with the step and the recorder; returns accuracies by name.
            files: of the training images, if they are of files.
        """
        self.settings, self.begun_at, self.pool, self.classes = settings, progress.start, pool, classes
        self.method_before = progress.method_before
        self._predict, self._evaluate, self._beside, self.files = predict, evaluate, progress.beside, files

    def before_step(self, step: int, recorder: RunWriter) -> list[str]:
        """Select labels, if that is due before training step ``step``, and return lines for a person."""
        since = step - self.begun_at
        if since and not (self.settings.refresh_every and since % self.settings.refresh_every == 0):
            return []
        if not since:
            self._beside["before"] = self._evaluate(step, recorder)
        return self._select_and_tell(step, recorder)

    def finish(self, step: int, recorder: RunWriter) -> list[str]:
        """Describe the labels at the end, if a method has made them as it trained."""
        return self._select_and_tell(step, recorder) if self.settings.select == "method" else []

    def results(self) -> dict[str, Any]:
        """Return what results.json tells of the round."""
        return {
            "pseudo_label": {
                **self.settings.model_dump(),
                "start": self.begun_at,
                "method_before": self.method_before,
                "before": self._beside["before"],
                "selections": self._beside["selections"],
            }
        }

    def _select_and_tell(self, step: int, recorder: RunWriter) -> list[str]:
        entry = self._select(step, recorder)
        self._beside["selections"] = [*self._beside.get("selections", []), entry]
        return describe_entry(self.settings, entry)

    def _select(self, step: int, recorder: RunWriter) -> dict[str, Any]:
        """Predict every image of the original unlabeled set, select, and let the pool use what is selected.

        Writes pseudo_labels.csv and pictures to the run directory, pictures to TensorBoard.

        Returns:
            An entry for results.json.
        """
        pool, classes = self.pool, self.classes
        index = pool.split_unlabeled[~torch.isin(pool.split_unlabeled, pool.split_labeled)]
        probabilities = self._predict(pool.images, index).cpu()
        truth, index = pool.labels[index].cpu(), index.cpu()
        selection = select(probabilities, pool.class_shares(), self.settings)
        fixed = selection.chosen & (self.settings.select != "method")
        pool.add_labels(index[fixed], selection.labels[fixed])

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


def describe_entry(settings: PseudoLabelSettings, entry: dict[str, Any]) -> list[str]:
    """Return the threshold table and the selection as lines to print."""
    lines = [f"{entry['candidates']} unlabeled images predicted at step {entry['step']}"]
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
    elif settings.select == "method":
        precision = (
            "" if entry["precision"] is None else f"; {entry['precision']:.2f}% of these predictions are correct"
        )
        lines.append(f"pseudo_label.method={settings.method} trains the round, no label is fixed{precision}")
    elif not entry["selected"]:
        lines.append(f"pseudo_label.select={settings.select} selects nothing: training goes on unchanged")
    else:
        precision = "" if entry["precision"] is None else f", {entry['precision']:.2f}% of them correct"
        lines.append(
            f"pseudo_label.select={settings.select} makes {entry['selected']} of them labeled "
            f"({entry['coverage']:.1f}%){precision}"
        )
    return lines
