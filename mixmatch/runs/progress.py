"""The metadata of a checkpoint."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Step = Annotated[int, Field(ge=0, le=2**53)]
Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class HistoryEntry(BaseModel):
    """One evaluation, a line of metrics.jsonl; callbacks add values of their own."""

    model_config = ConfigDict(extra="allow", strict=True)

    step: Step
    validation_accuracy: Percent | None
    test_accuracy: Percent | None


class BestEvaluation(BaseModel):
    """The first evaluation with the highest accuracy."""

    model_config = ConfigDict(strict=True)

    accuracy: Percent
    step: Step


class Progress(BaseModel):
    """The state of a run, except tensors; the metadata of each checkpoint.

    Attributes:
        step: completed steps.
        start_step: step at which the run began: 0, or in a pseudo-label stage the last step of its parent.
        method_start_step: step at which its method began: in a stage with ``pseudo_label.method`` ``start_step``, else
            the parent's.
        parent_method: method of the parent, in a stage.
        method_num_steps: number of steps that the method's schedules are made for, in a stage; None: all steps from
            ``method_start_step`` on.
        seconds: time spent training and evaluating, over all sessions.
        history: the evaluations.
        environment: torch version, device and threads.
        precision: that the run is trained in.
        callback_state: JSON-able state of callbacks, by ``Callback.name``.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Step = 0
    start_step: Step = 0
    method_start_step: Step = 0
    parent_method: str = ""
    method_num_steps: Step | None = None
    seconds: Seconds = 0.0
    history: list[HistoryEntry] = []
    environment: str = ""
    precision: str = ""
    callback_state: dict[str, dict[str, Any]] = {}

    def best_validation(self) -> BestEvaluation | None:
        """Return the first evaluation with the highest validation accuracy, None without validation images."""
        values = [(e.validation_accuracy, e.step) for e in self.history if e.validation_accuracy is not None]
        if not values:
            return None
        accuracy, step = max(values, key=lambda pair: pair[0])
        return BestEvaluation(accuracy=accuracy, step=step)

    def evaluations_since_best(self) -> int:
        """Return the number of evaluations after the best one on the validation set, 0 without one."""
        best = self.best_validation()
        return 0 if best is None else sum(entry.step > best.step for entry in self.history)
