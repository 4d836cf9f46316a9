"""Callbacks that every run has: accuracy on held-out and labeled images, and a warning when guessed labels collapse."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixmatch.data.stored_images import Images
from mixmatch.evaluation import Evaluation, balanced_accuracy, class_recalls, evaluate_predictions
from mixmatch.runs.progress import HistoryEntry
from mixmatch.runs.results import ConfusedClasses, HeldOutResults
from mixmatch.runs.writer import RunWriter
from mixmatch.training.callbacks import Callback

MAX_LABELED = 1000  # labeled images that are evaluated


class Accuracy(Callback):
    """Accuracy and loss of the EMA network on the validation or test images; its confusion matrix in TensorBoard."""

    def __init__(self, images: str, classes: Sequence[str]) -> None:
        """Set what is evaluated.

        Args:
            images: ``validation`` or ``test``.
            classes: names.
        """
        self.name = f"{images}_accuracy"
        self.images, self.classes = images, classes
        self.last: Evaluation | None = None

    def evaluate(self, step: int, writer: RunWriter) -> dict[str, float | None]:
        """Return accuracy in percent and loss; balanced accuracy too if the classes have different numbers of images.

        Without images the accuracy is None, alone.
        """
        held_out = self.trainer.dataset.held_out.get(self.images)
        if held_out is None:
            return {self.name: None}
        evaluation = self._evaluate(*held_out)
        writer.confusion(self.images, evaluation.confusion, self.classes, step)
        values: dict[str, float | None] = {self.name: evaluation.accuracy, f"{self.images}_loss": evaluation.loss}
        if len({*evaluation.confusion.sum(axis=1).tolist()}) > 1:
            values[f"{self.images}_balanced_accuracy"] = balanced_accuracy(evaluation.confusion)
        return values

    def results(self) -> dict[str, Any]:
        """Return details of the last evaluation, None without images."""
        held_out = self.trainer.dataset.held_out.get(self.images)
        if held_out is None:
            return {self.images: None}
        # A run that was killed between its last checkpoint and its results has not been evaluated by this process.
        last = self.last or self._evaluate(*held_out)
        counts, recalls = last.confusion.sum(axis=1), class_recalls(last.confusion)
        errors = last.confusion.copy()
        errors[range(len(errors)), range(len(errors))] = 0
        true, predicted = divmod(int(errors.argmax()), len(errors))
        confused = ConfusedClasses(
            true=self.classes[true],
            predicted=self.classes[predicted],
            images=int(errors[true, predicted]),
            of=int(counts[true]),
        )
        details = HeldOutResults(
            images=int(counts.sum()),
            accuracy=last.accuracy,
            balanced_accuracy=balanced_accuracy(last.confusion),
            accuracy_by_class={
                name: recall for name, recall in zip(self.classes, recalls, strict=True) if recall is not None
            },
            most_confused=confused if errors.any() else None,
        )
        return {self.images: details}

    def _evaluate(self, images: Images, labels: Tensor) -> Evaluation:
        self.last = evaluate_predictions(self.trainer.predict(images), labels)
        return self.last


class LabeledAccuracy(Callback):
    """Accuracy of the EMA network on labeled images that it is trained on, at most ``MAX_LABELED``, not augmented."""

    name = "labeled_accuracy"

    def evaluate(self, step: int, writer: RunWriter) -> dict[str, float | None]:
        """Return the accuracy in percent."""
        dataset = self.trainer.dataset
        labeled = dataset.split_labeled
        count, used = len(labeled), min(len(labeled), MAX_LABELED)
        # Evenly spaced: images of a folder are sorted by class.
        index = labeled[torch.arange(used, device=labeled.device) * count // used]
        true_labels = dataset.labels[index.to(dataset.device)]
        evaluation = evaluate_predictions(self.trainer.predict(dataset.images, index), true_labels)
        return {self.name: evaluation.accuracy}


class CollapseWarning(Callback):
    """Warns once if, at two evaluations in a row, guesses use far fewer classes than the labeled images."""

    name = "collapse_warning"

    def __init__(self, classes: Sequence[str], num_labeled_classes: float, hint: str) -> None:
        """Set when to warn.

        Args:
            classes: names.
            num_labeled_classes: effective number of classes of the labeled images.
            hint: what to change.
        """
        self.classes, self.num_labeled_classes, self.hint = classes, num_labeled_classes, hint

    def warnings(self, history: Sequence[HistoryEntry]) -> list[str]:
        """Return the warning, the first time that it applies."""
        recent = [entry.model_extra or {} for entry in history[-2:]]
        num_classes = [values.get("effective_num_classes", self.num_labeled_classes) for values in recent]
        if self.state.get("warned") or len(recent) < 2 or max(num_classes) >= 1 + (self.num_labeled_classes - 1) / 3:
            return []
        self.state["warned"] = True
        guesses = recent[-1]["guesses"]
        share = max(guesses)
        return [
            f"step {history[-1].step}: {100 * share:.0f}% of the guessed labels are "
            f"{self.classes[guesses.index(share)]!r}; {self.hint}"
        ]
