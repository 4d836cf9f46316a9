"""What may be done beside the training loop, which knows none of the things that do it."""

from typing import Any

from mixmatch.runs.writer import RunWriter


class Callback:
    """Something that the loop asks at fixed moments, of several processes in all alike. Each answer may be nothing."""

    def start(self, trainer: Any, memory: dict[str, Any]) -> None:  # noqa: ANN401 - imports run one way
        """Take up the run.

        Args:
            trainer: the run's ``Trainer``, at the step that the run is at.
            memory: what the hook has to remember, JSON-able; part of every checkpoint. It is kept under the name of
                the hook's class.
        """

    def before_step(self, step: int, recorder: RunWriter) -> list[str]:
        """Do what is due after ``step`` completed steps, and return lines to report."""
        return []

    def evaluate(self, step: int, recorder: RunWriter) -> dict[str, float | None]:
        """Return values by name: they join the line of metrics.jsonl and TensorBoard's curves."""
        return {}

    def warn(self, history: list[dict[str, Any]]) -> list[str]:
        """Look at the evaluations so far, and return warnings."""
        return []

    def finish(self, step: int, recorder: RunWriter) -> list[str]:
        """Do what is due when all steps are done, again if the run is ended before its results are there.

        Returns:
            Lines to report.
        """
        return []

    def results(self) -> dict[str, Any]:
        """Return what joins results.json."""
        return {}
