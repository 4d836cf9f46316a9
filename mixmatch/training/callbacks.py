"""Callbacks of the training loop."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mixmatch.errors import UserError
from mixmatch.runs.progress import HistoryEntry
from mixmatch.runs.writer import RunWriter
from mixmatch.training.trainer import Trainer


class Callback:
    """Called by the training loop at fixed moments, in each process of a run alike.

    Attributes:
        name: key of the callback's state in checkpoints, unique among the callbacks of a run; the class name if empty.
        trainer, state: as given to ``start``.
    """

    name: str = ""
    trainer: Trainer
    state: dict[str, Any]

    def start(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Begin or continue a run.

        Args:
            trainer: at the step from which the run continues.
            state: JSON-able values, saved with every checkpoint; change it in place.
        """
        self.trainer, self.state = trainer, state

    def before_step(self, step: int, writer: RunWriter) -> list[str]:
        """Act after ``step`` completed steps, and return lines to print."""
        return []

    def evaluate(self, step: int, writer: RunWriter) -> dict[str, float | None]:
        """Return values by name, for metrics.jsonl and TensorBoard; curves without ``/`` are in the group ``train``.

        Names that the run or another callback has are refused.
        """
        return {}

    def warnings(self, history: Sequence[HistoryEntry]) -> list[str]:
        """Return warnings after an evaluation, the last entry of ``history``."""
        return []

    def finish(self, step: int, writer: RunWriter) -> list[str]:
        """Act when all steps are done, and return lines to print.

        A run that is killed before its results are written calls it again.
        """
        return []

    def results(self) -> dict[str, Any]:
        """Return values by name, for results.json; names as for ``evaluate``."""
        return {}


def plain_values(callback: Callback, values: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Return the values of a callback, scalars of NumPy and torch as numbers.

    Raises:
        UserError: if a name is taken.
    """
    for name in values:
        if name in taken:
            raise UserError(
                f"callbacks: {type(callback).__name__} returns {name!r}, which the run has; use another name"
            )
    return {name: value.item() if isinstance(value, np.generic | Tensor) else value for name, value in values.items()}
