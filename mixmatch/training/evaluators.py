"""What is looked at beside the loop at each evaluation: accuracy, and whether guesses collapse into few classes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mixmatch.evaluation import Evaluation, balanced, recalls, score
from mixmatch.runs.progress import Progress
from mixmatch.runs.writer import RunWriter
from mixmatch.training.callbacks import Callback


class Accuracy(Callback):
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
        self._last: Evaluation | None = None

    def evaluate(self, step: int, recorder: RunWriter) -> dict[str, float | None]:
        """Return the accuracy in percent, None without images."""
        if self.held_out is None:
            return {f"{self.name}_accuracy": None}
        evaluation = self._measure(*self.held_out)
        recorder.confusion(self.name, evaluation.confusion, self.classes, step)
        return {f"{self.name}_accuracy": evaluation.accuracy}

    def results(self) -> dict[str, Any]:
        """Return what the last evaluation was, class by class."""
        if self.held_out is None:
            return {}
        # A run that was killed between its last checkpoint and its results has not evaluated in this process.
        last = self._last or self._measure(*self.held_out)
        confusion = last.confusion
        counts, shares = confusion.sum(dim=1).tolist(), recalls(confusion)
        by_class = {name: share for name, share in zip(self.classes, shares, strict=True) if share is not None}
        wrong = confusion - confusion.diagonal().diag()
        truth, guess = divmod(int(wrong.argmax()), len(self.classes))
        confused = {
            "true": self.classes[truth],
            "predicted": self.classes[guess],
            "images": int(wrong[truth, guess]),
            "of": counts[truth],
        }
        return {
            f"{self.name}_images": sum(counts),
            f"{self.name}_accuracy_last": last.accuracy,
            f"{self.name}_accuracy_by_class": by_class,
            f"{self.name}_accuracy_balanced": balanced(shares),
            f"{self.name}_most_confused": confused if wrong.any() else None,
        }

    def _measure(self, images: Tensor, labels: Tensor) -> Evaluation:
        self._last = score(self.predict(images), labels)
        return self._last


class CollapseWatch(Callback):
    """Says once if, at two evaluations in a row, guesses went to far fewer classes than labeled images have."""

    def __init__(self, classes: Sequence[str], labeled_classes: float, advice: str, progress: Progress) -> None:
        """Watch a run.

        Args:
            classes: names.
            labeled_classes: how many classes, equally used, would spread as widely as the labeled images do.
            advice: what to do then.
            progress: where it is remembered that the warning has been given.
        """
        self.classes, self.labeled_classes, self.advice = classes, labeled_classes, advice
        self.beside = progress.beside

    def warn(self, history: list[dict[str, Any]]) -> list[str]:
        """Return the warning, the first time that it is due."""
        recent = [entry.get("effective_num_classes", self.labeled_classes) for entry in history[-2:]]
        if self.beside.get("warned") or len(recent) < 2 or max(recent) >= 1 + (self.labeled_classes - 1) / 3:
            return []
        self.beside["warned"] = True
        entry = history[-1]
        share = max(entry["guesses"])
        return [
            f"at step {entry['step']} the guessed labels go to few classes ({100 * share:.0f}% to "
            f"{self.classes[entry['guesses'].index(share)]!r}); {self.advice}"
        ]
