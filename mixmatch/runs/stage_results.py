"""What results.json contains of a pseudo-label stage."""

from pydantic import BaseModel


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
