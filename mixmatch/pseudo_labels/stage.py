"""The pseudo-label stage: selects labels while a run trains on."""

from typing import Any

import torch

from mixmatch.config import PseudoLabelSettings
from mixmatch.evaluation import confusion_matrix, evaluate_predictions
from mixmatch.pseudo_labels.rules import describe_selection, expected_calibration_error, select, to_csv
from mixmatch.runs.progress import Progress
from mixmatch.runs.results import Selection, StageResults
from mixmatch.runs.writer import RunWriter
from mixmatch.training.callbacks import Callback


class PseudoLabelStage(Callback):
    """Selects labels at the start of a stage and every ``refresh_every`` steps, each time among all unlabeled images.

    True classes of unlabeled images are used for statistics only.
    """

    name = "pseudo_label"

    def __init__(
        self, settings: PseudoLabelSettings, progress: Progress, classes: list[str], files: list[str] | None = None
    ) -> None:
        """Set up the stage.

        Args:
            settings: the ``pseudo_label`` section.
            progress: of the run, for the step and the method from which the stage started.
            classes: names.
            files: of the training images, if they are files.
        """
        self.settings, self.classes, self.files = settings, classes, files
        self.start_step, self.parent_method = progress.start_step, progress.parent_method

    def before_step(self, step: int, writer: RunWriter) -> list[str]:
        """Select labels if that is due, and return lines to print."""
        elapsed, every = step - self.start_step, self.settings.refresh_every
        refresh = self.settings.method is None and every is not None and elapsed % every == 0
        return self._select(step, writer) if elapsed == 0 or refresh else []

    def evaluate(self, step: int, writer: RunWriter) -> dict[str, float | None]:
        """Return how many images are labeled and unlabeled now, unless a method trains the stage."""
        if self.settings.method is not None:
            return {}
        dataset = self.trainer.dataset
        return {"labeled_images": len(dataset.labeled), "unlabeled_images": len(dataset.unlabeled)}

    def finish(self, step: int, writer: RunWriter) -> list[str]:
        """Describe the final predictions if a method has trained the stage."""
        return self._select(step, writer) if self.settings.method is not None else []

    def results(self) -> dict[str, Any]:
        """Return the part of results.json that describes the stage."""
        stage = StageResults(
            start_step=self.start_step,
            parent_method=self.parent_method,
            select=self.settings.select if self.settings.method is None else None,
            method=self.settings.method,
            **self.state,
        )
        return {"pseudo_label": stage}

    def _select(self, step: int, writer: RunWriter) -> list[str]:
        """Predict all unlabeled images, select labels, train on them from now on, and return lines to print."""
        dataset, predict = self.trainer.dataset, self.trainer.predict
        index = dataset.split_unlabeled[~torch.isin(dataset.split_unlabeled, dataset.split_labeled)]
        probabilities = torch.empty(0, dataset.num_classes)  # if all images are labeled
        if len(index):
            probabilities = predict(dataset.images, index).cpu()
        index = index.cpu()
        true_labels = dataset.labels.cpu()[index]
        selected, labels = select(probabilities, self.settings), probabilities.argmax(dim=1)
        fixed = selected if self.settings.method is None else torch.zeros_like(selected)
        dataset.set_pseudo_labels(index[fixed], labels[fixed])

        held_out = {name: (predict(images).cpu(), labels.cpu()) for name, (images, labels) in dataset.held_out.items()}
        if step == self.start_step:
            accuracies = {name: evaluate_predictions(*predictions).accuracy for name, predictions in held_out.items()}
            self.state |= {"accuracy_before": accuracies, "selections": []}
        errors = {
            name: expected_calibration_error(predicted[true >= 0], true[true >= 0])
            for name, (predicted, true) in {"unlabeled": (probabilities, true_labels), **held_out}.items()
            if (true >= 0).any()
        }
        entry = describe_selection(step, probabilities, selected, true_labels, self.classes, errors)
        self.state["selections"].append(entry.model_dump())

        known = selected & (true_labels >= 0)
        if known.any():
            matrix = confusion_matrix(true_labels[known], labels[known], len(self.classes))
            writer.confusion("pseudo_labels", matrix, self.classes, step)
        rows = to_csv(index, probabilities, selected, true_labels, self.classes, self.files)
        writer.file(f"pseudo_labels/step-{step:08d}.csv", rows.encode())
        return format_selection(self.settings, entry)


def format_selection(settings: PseudoLabelSettings, entry: Selection) -> list[str]:
    """Return the table of thresholds and the selection as lines to print."""
    known = entry.correct is not None
    lines = [
        f"step {entry.step}: predictions of {entry.candidates} unlabeled images",
        "  threshold  generated" + "   correct  precision" * known,
    ]
    for threshold, counts in entry.thresholds.items():
        line = f"  {threshold:>9}{counts.selected:>11}"
        if known:
            precision = "-" if counts.precision is None else f"{counts.precision:.2f}%"
            line += f"{counts.correct:>10}{precision:>11}"
        lines.append(line)
    correct = "" if entry.precision is None else f", {entry.precision:.2f}% correct"
    if settings.method is not None:
        return [*lines, f"pseudo_label.method={settings.method}: predictions are not fixed as labels{correct}"]
    rule = f"pseudo_label.select={settings.select}"
    if not entry.selected:
        return [*lines, f"{rule}: no image is selected, training goes on with the split's labels alone"]
    return [*lines, f"{rule}: {entry.selected} images ({entry.coverage:.1f}%) become labeled{correct}"]
