"""The contents of results.json."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from mixmatch.runs.progress import BestEvaluation, Percent, Seconds, Step


class LabelCounts(BaseModel):
    """How many predictions are selected as labels, and how many of these are correct.

    ``correct`` and ``precision`` (percent) count images whose class is known; null without any.
    """

    selected: int
    correct: int | None
    precision: float | None


class Selection(LabelCounts):
    """One selection among the predictions on unlabeled images.

    Attributes:
        step: completed steps.
        candidates: unlabeled images.
        coverage: percent of them that is selected.
        classes: counts by predicted class.
        thresholds: counts of predictions at least so confident, selected or not.
        calibration_error: expected calibration error, in [0, 1], by set of images.
    """

    step: int
    candidates: int
    coverage: float
    classes: dict[str, LabelCounts]
    thresholds: dict[str, LabelCounts]
    calibration_error: dict[str, float]


class StageResults(BaseModel):
    """A pseudo-label stage.

    Attributes:
        start_step: the step of the parent's checkpoint, from which the stage continues.
        parent_method: the method that trained the parent.
        select: the rule; null if a method trained the stage.
        method: null if labels were selected.
        accuracy_before: percent, at ``start_step``, by set of images.
        selections: at the start and every ``refresh_every`` steps; with a method at the start and the end.
    """

    start_step: int
    parent_method: str
    select: str | None
    method: str | None
    accuracy_before: dict[str, float]
    selections: list[Selection]


class ConfusedClasses(BaseModel):
    """The most frequent confusion of two classes."""

    true: str
    predicted: str
    images: int  # of the true class, predicted as the other
    of: int  # images of the true class


class HeldOutResults(BaseModel):
    """The last evaluation on the test or validation images, in percent."""

    images: int
    accuracy: Percent
    balanced_accuracy: Percent
    accuracy_by_class: dict[str, Percent]
    most_confused: ConfusedClasses | None = None


class RunResults(BaseModel):
    """The results of a finished run; callbacks add values of their own.

    Attributes:
        test_accuracy: percent, of the last evaluation: that of the saved network.
        test_accuracy_median20: median of the last 20 evaluations, as reported in the paper; None if there are fewer.
        best_validation: the checkpoint kept for ``--best``.
        evaluations_since_best: how many there were after ``best_validation``.
        steps: completed, those of the parent of a pseudo-label stage included.
        seconds: time spent training and evaluating.
        steps_per_second: evaluations included, unlike in metrics.jsonl.
        forward_equivalents_per_step: cost of a step in forward passes of one image, all processes together.
        flops_per_forward: of the network, for one image.
        device: name of the GPU, or ``cpu``.
        torch, commit: versions of PyTorch and of this code.
        test, validation: details of the last evaluation.
        pseudo_label: of a pseudo-label stage.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    test_accuracy: Percent | None
    test_accuracy_median20: Percent | None = None
    best_validation: BestEvaluation | None = None
    evaluations_since_best: int = 0
    steps: Step
    seconds: Seconds
    steps_per_second: Seconds
    forward_equivalents_per_step: int | None = None
    flops_per_forward: int | None = None
    dataset: str
    method: str
    num_labeled: int
    seed: int
    device: str
    processes: int = 1
    precision: str
    torch: str
    commit: str
    test: HeldOutResults | None = None
    validation: HeldOutResults | None = None
    pseudo_label: StageResults | None = None

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Yield what pydantic shows in ``repr``: a few of the values."""
        for name in ("test_accuracy", "test_accuracy_median20", "best_validation", "steps", "seconds"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)
