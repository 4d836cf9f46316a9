"""How long the rest of a run will take, estimated from the times measured so far."""

import math

WARM_UP_STEPS, MIN_STEPS, MIN_SECONDS = 2, 3, 5.0  # steps not measured, and what the first estimate needs
SHORTEST_RUN = 30.0  # seconds; nothing is printed about shorter ones
SMALL_CHANGE = 0.5  # of the total, after which it is not printed again
LONG_ON_CPU = 2 * 3600.0  # seconds

SHORT_ON_CPU = (
    "on a CPU these configs end in minutes: --config digits, --config fashion-mnist, --config cpu "
    "train.steps=1000 remixmatch.ramp_up_steps=250"
)


class DurationEstimator:
    """Adds up the times of steps and of evaluations, and estimates the time that the rest takes.

    Times are seconds, values of time.monotonic(). The first steps, which warm up, are not measured. The time of
    checkpoints and of selections of pseudo-labels counts as that of the step after them.
    """

    def __init__(self, now: float, step: int, num_steps: int, eval_every: int) -> None:
        """Begin to measure.

        Args:
            now: the time.
            step: completed steps.
            num_steps: of the whole run.
            eval_every: steps between evaluations.
        """
        self.num_steps, self.eval_every = num_steps, eval_every
        self._started = self._now = now
        self._first = self._step = step
        self._steps, self._step_seconds = 0, 0.0
        self._evaluations, self._evaluation_seconds = 0, 0.0
        self._announced: float | None = None

    def add_steps(self, step: int, now: float) -> None:
        """Add the time since the last call, in which the steps up to ``step`` were done."""
        if self._step - self._first >= WARM_UP_STEPS:
            self._steps += step - self._step
            self._step_seconds += now - self._now
        self._step, self._now = step, now

    def add_evaluation(self, now: float) -> None:
        """Add the time since the last call, which was an evaluation."""
        self._evaluations += 1
        self._evaluation_seconds += now - self._now
        self._now = now

    def remaining(self) -> float:
        """Return the estimate of the remaining seconds; NaN before anything is measured."""
        if not self._steps:
            return math.nan
        seconds = (self.num_steps - self._step) * self._step_seconds / self._steps
        if self._evaluations:  # the last one is after the last step
            count = -(-self.num_steps // self.eval_every) - self._step // self.eval_every
            seconds += count * self._evaluation_seconds / self._evaluations
        return seconds

    def announcement(self, evaluated: bool, on_cpu: bool) -> list[str]:
        """Return lines to print: once, as soon as there is an estimate, and after it has changed much.

        Args:
            evaluated: whether there was an evaluation after the last step; changes are printed only then.
            on_cpu: whether the run is on a CPU.
        """
        if self._announced is not None and not evaluated:
            return []
        if self._steps < MIN_STEPS or self._step_seconds < MIN_SECONDS or self._step == self.num_steps:
            return []
        remaining = self.remaining()
        total = self._now - self._started + remaining
        if total < SHORTEST_RUN:
            return []
        if self._announced is not None and abs(total - self._announced) <= SMALL_CHANGE * self._announced:
            return []
        lines = [self._describe(remaining)]
        if on_cpu and self._announced is None and total > LONG_ON_CPU:
            lines.append(SHORT_ON_CPU)
        self._announced = total
        return lines

    def _describe(self, remaining: float) -> str:
        left = self.num_steps - self._step
        included = "included" if self._evaluations else "not included"
        return (
            f"about {describe_seconds(remaining)} for the remaining {left:,} step{'s' * (left > 1)} "
            f"({describe_step(self._step_seconds / self._steps)} a step), evaluations {included}"
        )


def describe_seconds(seconds: float) -> str:
    """Return a duration for people: ``50 s``, ``12 min``, ``3 h 20 min`` or ``2 days 5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} days {hours % 24} h"


def describe_step(seconds: float) -> str:
    """Return the duration of a step: ``1.2 s``, ``35 ms`` or ``3.2 ms``."""
    if seconds < 0.995:
        return f"{1000 * seconds:.{1 if seconds < 0.00995 else 0}f} ms"
    return f"{seconds:.1f} s"
