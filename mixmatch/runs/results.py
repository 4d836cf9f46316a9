"""The contents of results.json."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from mixmatch.runs.progress import BestEvaluation, Percent, Seconds, Step
from mixmatch.runs.stage_results import StageResults


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
