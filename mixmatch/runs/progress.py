"""What a run remembers beside tensors, and what is asked of it when read back: anybody may have changed a file."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixmatch.errors import describe_error
from mixmatch.files import DamagedFile

Step = Annotated[int, Field(ge=0, le=2**53)]
Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Stored(BaseModel):
    """What is read back from a file that anybody may have changed; more than is asked for may be in it."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Entry(_Stored):
    """What is asked of an entry of the history."""

    step: Step
    validation_accuracy: Percent | None
    test_accuracy: Percent | None
    effective_num_classes: float | None = None
    guesses: list[float] | None = None


class _Meta(_Stored):
    """What is asked of a checkpoint's meta."""

    step: Step = 0
    start: Step = 0
    method_start: Step = 0
    method_before: str = ""
    method_steps: Step = 0
    seconds: Seconds = 0.0
    history: list[_Entry] = []
    events_size: Step = 0
    environment: str = ""
    precision: str = ""
    before: dict[str, Any] = {}
    selections: list[dict[str, Any]] = []
    hooks: dict[str, dict[str, Any]] = {}


class _Best(_Stored):
    accuracy: Percent
    step: Step


class _OfRound(_Stored):
    start: Step


class Results(_Stored):
    """What is asked of results.json."""

    test_accuracy: Percent | None
    test_accuracy_last: Percent | None
    evaluations_averaged: Step = 0
    best_validation: _Best | None
    steps: Step
    seconds: Seconds
    steps_per_second: Seconds
    pseudo_label: _OfRound = _OfRound(start=0)

    @model_validator(mode="after")
    def _both_or_neither(self) -> "Results":
        if (self.test_accuracy is None) != (self.test_accuracy_last is None):
            raise ValueError("test_accuracy and test_accuracy_last must both be there")
        return self


@dataclass
class Progress:
    """What a run has to remember beside tensors. It is saved in every checkpoint.

    Attributes:
        step: completed steps.
        start: the step at which the run began: 0, or for a round of pseudo-labels its parent's last.
        method_start: the step at which its method did: that of a round by another method, else as its parent's.
        method_before: in rounds, the method of the run before; empty in checkpoints of earlier versions.
        method_steps: the length that its schedules are made for, in rounds; 0: all steps from ``method_start`` on.
        seconds: spent training and evaluating, over all sessions.
        history: one entry per evaluation, the lines of metrics.jsonl.
        events_size: bytes of the TensorBoard file that belong to the run so far.
        environment: torch, device and threads that computed it.
        precision: that it began with; empty in checkpoints of earlier versions.
        beside: what things beside the loop have to remember, by names of their own.
    """

    step: int = 0
    start: int = 0
    method_start: int = 0
    method_before: str = ""
    method_steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    events_size: int = 0
    environment: str = ""
    precision: str = ""
    beside: dict[str, Any] = field(default_factory=dict)

    def to_meta(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it: one level of names, ``beside``'s among them."""
        values = dict(vars(self))
        return values | values.pop("beside")

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "Progress":
        """Return what ``to_meta`` made a checkpoint's entry of.

        Raises:
            DamagedFile: if it is none of these.
        """
        try:
            checked = _Meta.model_validate(meta)
        except (ValidationError, RecursionError) as error:
            raise DamagedFile(f"does not say where the run was ({describe_error(error)})") from None
        if not checked.method_start <= checked.start <= checked.step:
            raise DamagedFile("says that the run was before its start")
        own = {entry.name for entry in fields(cls)} - {"beside"}
        return cls(
            **{name: value for name, value in meta.items() if name in own},
            beside={name: value for name, value in meta.items() if name not in own},
        )

    def best_validation(self) -> dict[str, float] | None:
        """Return accuracy and step of the (first) best evaluation on the validation set, None without one."""
        entries = [entry for entry in self.history if entry["validation_accuracy"] is not None]
        best = max(entries, key=lambda entry: entry["validation_accuracy"], default=None)
        return best and {"accuracy": best["validation_accuracy"], "step": best["step"]}
