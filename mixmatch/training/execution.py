"""The ways to compute a step, from the fastest down: compiled and recorded, recorded, plain; and which one works here.

A mode that fails to compile, to record or to compute what the plain step does is left with one line, and the run goes
on with the next one, from the same state.
"""

import importlib.util
import math
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixmatch.config import TrainSettings
from mixmatch.errors import single_line
from mixmatch.training.cuda_graph import COMPILED, COMPILED_CUDA_GRAPH, CUDA_GRAPH, EAGER, ExecutionMode
from mixmatch.training.trainer import Trainer

# On an H200 compiling WRN-28-2 costs 57 s and saves 3.2 ms a step: it pays from 17,500 steps on.
STEPS_WORTH_COMPILING = 20_000
CHECKED_STEPS = 2


class Tolerance(NamedTuple):
    """How far a mode may be off the plain step, relatively: rounding, in another order of sums."""

    losses: float  # each part of the loss, and the confidence of guesses
    gradient: float  # all of the gradient together, as a vector
    of_parameter: float  # the gradient of each parameter that has a thousandth of the whole or more
    changes: float  # the norm of what the steps change


TOLERANCES = {"float32": Tolerance(1e-3, 0.02, 0.1, 0.02), "bfloat16": Tolerance(0.02, 0.25, 0.7, 0.1)}


def list_execution_modes(settings: TrainSettings, device: torch.device, steps_left: int) -> list[ExecutionMode]:
    """Return the modes to try, the fastest first, as the config asks for and the run's length makes worth while."""
    on_gpu = device.type == "cuda"
    worth = on_gpu and steps_left >= STEPS_WORTH_COMPILING
    if not steps_left:
        return [EAGER]
    compiling = worth if settings.compile == "auto" else settings.compile
    recording = on_gpu and settings.cuda_graph is not False
    modes = []
    if compiling:
        modes.append(COMPILED_CUDA_GRAPH if recording else COMPILED)
    if recording:
        modes.append(CUDA_GRAPH)
    return [*modes, EAGER]


def select_execution_mode(
    trainer: Trainer,
    modes: Sequence[ExecutionMode],
    warn: Callable[[str], None],
    busy: Callable[[str], AbstractContextManager[None]],
) -> ExecutionMode:
    """Let ``trainer`` use the first of ``modes`` that works, and return it. Its state and its draws stay as they are.

    Of several processes all take the same: the first that works in each of them.

    Args:
        trainer: at any step.
        modes: from ``list_execution_modes``; the last one is plain.
        warn: called with a line for each mode that is left.
        busy: entered, with what is being done, around what takes long.
    """
    if list(modes) == [EAGER]:
        trainer.use(EAGER)
        return EAGER
    start = Snapshot(trainer)
    trainer.use(EAGER)
    expected = observe(trainer)
    start.restore()
    for mode in modes:
        trainer.use(mode)
        if mode == EAGER:
            return mode
        # First by itself, without a message to other processes: one that fails here must not leave them waiting.
        stages: list[Callable[[], object]] = [
            trainer.compute_gradients,
            trainer.get_ready,
            lambda: compare(observe(trainer), expected, trainer),
        ]
        cause = None
        with busy(f"compiling the step ({mode.skip} leaves it out)" if mode.compiled else "recording the step"):
            for stage in stages:
                cause = try_stage(trainer, stage)
                start.restore()
                if trainer.ranks.largest([cause is not None])[0]:
                    if cause is not None and not trainer.ranks.first:  # the first one alone speaks otherwise
                        print(f"warning: rank {trainer.ranks.rank}: {cause}", file=sys.stderr)
                    cause = cause or "another process could not"
                    break
        if cause is None:
            return mode
        warn(f"the step is not {mode.name}: {cause}; going on without ({mode.skip} leaves it out)")
    return EAGER


def try_stage(trainer: Trainer, stage: Callable[[], object]) -> str | None:
    """Do ``stage``, and return in a line why it failed, None if it did not."""
    try:
        trainer.give_inputs()
        stage()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise whatever they like
        return explain_failure(error)
    return None


class Snapshot:
    """A trainer's state, to go back to in place: what is recorded stays valid."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.step = trainer, trainer.step
        self.state = {name: value.clone() for name, value in trainer.state().items()}

    def restore(self) -> None:
        """Bring the trainer back. What the first step has made since starts at zero."""
        self.trainer.step = self.step
        with torch.no_grad():
            for name, value in self.trainer.state().items():
                value.copy_(self.state[name]) if name in self.state else value.zero_()


class Observation(NamedTuple):
    """What is compared of a few steps."""

    losses: Tensor  # (steps, parts): the loss, its parts and the confidence of guesses
    gradients: list[Tensor]  # of the first step
    changes: list[float]  # norms of what the steps changed: weights and statistics, averages, the method's own


def observe(trainer: Trainer) -> Observation:
    """Do the next steps, and return what they computed."""
    before = {name: value.clone() for name, value in trainer.state().items()}
    totals, losses, gradients = trainer.totals, [], []
    # Counts of guesses are left out: a tie may fall either way.
    compared = 2 + len(totals.parts) + bool(totals.num_classes)
    for number in range(CHECKED_STEPS):
        so_far = totals.sums.clone()
        trainer.train_step()
        losses.append((totals.sums - so_far)[:compared])
        if not number:
            gradients = [p.grad.float().clone() for p in trainer.trained if p.grad is not None]

    def change(part: str) -> float:
        tensors = [value - before[name] for name, value in trainer.state().items() if name.startswith(part)]
        return _norm([tensor for tensor in tensors if tensor.is_floating_point()])

    changes = [change(part) for part in ("model.", "ema.", "method.", "head.")]
    return Observation(torch.stack(losses).cpu(), gradients, changes)


def _norm(tensors: list[Tensor]) -> float:
    return torch.stack(torch._foreach_norm(tensors)).norm().item() if tensors else 0.0


def compare(observed: Observation, expected: Observation, trainer: Trainer) -> None:
    """Raise WrongResult if what a mode computed is not, within ``TOLERANCES``, what the plain step does."""
    tolerance = TOLERANCES[trainer.precision_name]

    def check(what: str, ours: float, plain: float, allowed: float) -> None:
        same = math.isclose(ours, plain, rel_tol=allowed, abs_tol=1e-6) or (math.isnan(ours) and math.isnan(plain))
        if not same:
            raise WrongResult(f"it computes something else, {what} of {ours:.6g} instead of {plain:.6g}")

    for ours, plain in zip(observed.losses.flatten().tolist(), expected.losses.flatten().tolist(), strict=True):
        check("a loss", ours, plain, tolerance.losses)
    for ours, plain in zip(observed.changes, expected.changes, strict=True):
        check("a change", ours, plain, tolerance.changes)
    if len(observed.gradients) != len(expected.gradients):
        raise WrongResult("it computes something else, gradients of other parameters")
    off = [ours - plain for ours, plain in zip(observed.gradients, expected.gradients, strict=True)]
    whole = _norm(expected.gradients)
    if whole and not _norm(off) <= tolerance.gradient * whole:
        raise WrongResult(f"it computes something else, a gradient that is {_norm(off) / whole:.2g} of its size off")
    for difference, plain in zip(off, expected.gradients, strict=True):
        size = plain.norm().item()
        if size > 1e-3 * whole and not difference.norm().item() <= tolerance.of_parameter * size:
            raise WrongResult("it computes something else, the gradient of a parameter")


class WrongResult(Exception):
    """A mode computes something else than the plain step."""


def explain_failure(error: BaseException) -> str:
    """Say in a line why a mode failed and, where that is known, what would mend it."""
    if isinstance(error, torch.OutOfMemoryError):
        return "it needs more memory than there is; lower train.batch_size"
    while True:
        # A capture that is broken reports that it is; what broke it was raised before.
        earlier = error.__cause__ or (error.__context__ if "captur" in str(error) else None)
        if earlier is None:
            break
        error = earlier
    if isinstance(error, WrongResult):
        return str(error)
    # The line of a compiler that says what is wrong, else the first one: pages of advice follow.
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    text = single_line(next((line for line in lines if "error:" in line), lines[0]))
    text = f"{type(error).__name__}: {text[:197]}{'...' * (len(text) > 197)}"
    of_compiler = isinstance(error, FileNotFoundError | subprocess.CalledProcessError) or "ompiler" in text
    if importlib.util.find_spec("triton") is None and "riton" in text:
        return f"{text}; install Triton (pip install triton, on Windows triton-windows)"
    if of_compiler and not any(map(shutil.which, ("cc", "gcc", "g++", "clang", "cl"))):
        return f"{text}; install a C compiler (such as gcc)"
    if of_compiler and not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return f"{text}; install Python's headers (such as python3-dev)"
    return text
