"""What is looked at beside the loop at each evaluation: accuracy, and whether guesses collapse into few classes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mixmatch.evaluation import score
from mixmatch.hooks import Hook
from mixmatch.records.recorder import Recorder
from mixmatch.records.run import Progress


class Accuracy(Hook):
    """The averaged network's accuracy on a set of images, and its confusion matrix in TensorBoard."""

    def __init__(
        self,
        name: str,
        held_out: tuple[Tensor, Tensor] | None,
        classes: Sequence[str],
        predict: Callable[[Tensor], Tensor],
    ) -> None:
        """Measure on one set.

        Args:
            name: ``validation`` or ``test``.
            held_out: images (n, h, w, c) uint8 and labels (n,); None if the set is empty.
            classes: names.
            predict: returns (n, C) probabilities of images.
        """
        self.name, self.held_out, self.classes, self.predict = name, held_out, classes, predict

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, float | None]:
        """Return the accuracy in percent, None without images."""
        if self.held_out is None:
            return {f"{self.name}_accuracy": None}
        images, labels = self.held_out
        evaluation = score(self.predict(images), labels)
        recorder.confusion(self.name, evaluation.confusion, self.classes, step)
        return {f"{self.name}_accuracy": evaluation.accuracy}


class CollapseWatch(Hook):
    """Says once if, at two evaluations in a row, guesses went to far fewer classes than labelled images have."""

    def __init__(self, classes: Sequence[str], labeled_classes: float, advice: str, progress: Progress) -> None:
        """Watch a run.

        Args:
            classes: names.
            labeled_classes: how many classes, equally used, would spread as widely as the labelled images do.
            advice: what to do then.
            progress: where it is remembered that the warning has been given.
        """
        self.classes, self.labeled_classes, self.advice = classes, labeled_classes, advice
        self.beside = progress.beside

    def warn(self, history: list[dict[str, Any]]) -> list[str]:
        """Return the warning, the first time that it is due."""
        recent = [entry.get("guessed_classes", self.labeled_classes) for entry in history[-2:]]
        if self.beside.get("warned") or len(recent) < 2 or max(recent) >= 1 + (self.labeled_classes - 1) / 3:
            return []
        self.beside["warned"] = True
        entry = history[-1]
        share = entry["most_guessed_share"]
        return [
            f"at step {entry['step']} the guessed labels go to few classes ({100 * share:.0f}% to "
            f"{self.classes[entry['guesses'].index(share)]!r}); {self.advice}"
        ]
