"""The ways to compute a step, from the fastest down: compiled and recorded, recorded, plain; and which one works here.

A rung that fails to compile, to record or to compute what the plain step does is left with one line, and the run goes
on with the next one, from the same state.
"""

import importlib.util
import math
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from mixmatch.config import TrainSettings
from mixmatch.errors import one_line
from mixmatch.training.capture import COMPILED, COMPILED_AND_RECORDED, PLAIN, RECORDED, Rung
from mixmatch.training.trainer import Trainer

# Compiling WRN-28-2 takes two to three minutes, and can save a few milliseconds a step: an estimate, not measured.
STEPS_WORTH_COMPILING = 50_000
CHECKED_STEPS = 2
# How far the loss, and the norms of what two steps change, may be off, relatively. Rounding alone moves an entry of
# Adam's first steps by up to the learning rate where its gradient is nearly 0, but hardly a norm over all of them.
TOLERANCES = {"float32": (1e-3, 0.02), "bfloat16": (0.02, 0.1)}


def list_rungs(settings: TrainSettings, device: torch.device, steps_left: int) -> list[Rung]:
    """Return the rungs to try, the fastest first, as the config asks for and the run's length makes worth while."""
    on_gpu = device.type == "cuda"
    worth = on_gpu and steps_left >= STEPS_WORTH_COMPILING
    compiling = worth if settings.compile == "auto" else settings.compile
    recording = on_gpu and settings.record is not False
    rungs = []
    if compiling:
        rungs.append(COMPILED_AND_RECORDED if recording else COMPILED)
    if recording:
        rungs.append(RECORDED)
    return [*rungs, PLAIN]


def climb(
    trainer: Trainer,
    rungs: Sequence[Rung],
    warn: Callable[[str], None],
    busy: Callable[[str], AbstractContextManager[None]],
) -> Rung:
    """Let ``trainer`` use the first of ``rungs`` that works, and return it. Its state and its draws stay as they are.

    Of several processes all take the same: the first that works in each of them.

    Args:
        trainer: at any step.
        rungs: from ``list_rungs``; the last one is plain.
        warn: called with a line for each rung that is left.
        busy: entered, with what is being done, around what takes long.
    """
    if list(rungs) == [PLAIN]:
        trainer.use(PLAIN)
        return PLAIN
    start = Snapshot(trainer)
    trainer.use(PLAIN)
    expected = observe(trainer)
    start.restore()
    for rung in rungs:
        trainer.use(rung)
        if rung == PLAIN:
            return rung
        stages: list[Callable[[], object]] = [trainer.get_ready, lambda: compare(observe(trainer), expected, trainer)]
        if rung.compiled:
            # First by itself, without a message to other processes: one that fails here must not leave them waiting.
            stages.insert(0, trainer.compute_gradients)
        cause = None
        with busy(f"compiling the step ({rung.skip} leaves it out)" if rung.compiled else "recording the step"):
            for stage in stages:
                cause = try_stage(trainer, stage)
                start.restore()
                if trainer.ranks.largest([cause is not None])[0]:
                    cause = cause or "another process could not"
                    break
        if cause is None:
            return rung
        warn(f"the step is not {rung.name}: {cause}; going on without ({rung.skip} leaves it out)")
    return PLAIN


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


def observe(trainer: Trainer) -> list[float]:
    """Do the next steps, and return the loss of each and the norms of all that they changed."""
    before = {name: value.clone() for name, value in trainer.state().items()}
    losses = []
    for _ in range(CHECKED_STEPS):
        so_far = trainer.totals.sums[1].clone()
        trainer.train_step()
        losses.append((trainer.totals.sums[1] - so_far).item())

    def change(part: str) -> float:
        tensors = [value - before[name] for name, value in trainer.state().items() if name.startswith(part)]
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        return _norm(floats)

    return [*losses, change("model."), change("ema."), change("method.")]


def _norm(tensors: list[Tensor]) -> float:
    return torch.stack(torch._foreach_norm(tensors)).norm().item() if tensors else 0.0


def compare(observed: list[float], expected: list[float], trainer: Trainer) -> None:
    """Raise WrongResult if what a rung computed is not, within ``TOLERANCES``, what the plain step does."""
    of_loss, of_norms = TOLERANCES[trainer.precision_name]
    for number, (ours, plain) in enumerate(zip(observed, expected, strict=True)):
        tolerance = of_loss if number < CHECKED_STEPS else of_norms
        same = math.isclose(ours, plain, rel_tol=tolerance, abs_tol=1e-6) or (math.isnan(ours) and math.isnan(plain))
        if not same:
            what = f"loss of step {number + 1}" if number < CHECKED_STEPS else "norm of what it changes"
            raise WrongResult(f"it computes something else, a {what} of {ours:.6g} instead of {plain:.6g}")


class WrongResult(Exception):
    """A rung computes something else than the plain step."""


def explain_failure(error: BaseException) -> str:
    """Say in a line why a rung failed and, where that is known, what would mend it."""
    if isinstance(error, torch.OutOfMemoryError):
        return "it needs more memory than there is; lower train.batch_size"
    while True:
        # A capture that is broken reports that it is; what broke it was raised before.
        earlier = error.__cause__ or (error.__context__ if "captur" in str(error) else None)
        if earlier is None:
            break
        error = earlier
    text = one_line(error)
    if isinstance(error, WrongResult):
        return text
    text = f"{type(error).__name__}: {text[:157]}{'...' * (len(text) > 157)}"
    of_compiler = isinstance(error, FileNotFoundError | subprocess.CalledProcessError) or "ompiler" in text
    if importlib.util.find_spec("triton") is None and "riton" in text:
        return f"{text}; install Triton (pip install triton, on Windows triton-windows)"
    if of_compiler and not any(map(shutil.which, ("cc", "gcc", "clang", "cl"))):
        return f"{text}; install a C compiler (such as gcc)"
    if of_compiler and not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return f"{text}; install Python's headers (such as python3-dev)"
    return text
