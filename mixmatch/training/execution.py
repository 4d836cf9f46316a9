"""How a step is executed: eager, as a CUDA graph, compiled, or both; and which mode works here.

A mode that fails to compile or to record is skipped with one line, and the run goes on with the next mode.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from mixmatch.config.schema import TrainSettings
from mixmatch.errors import UserError, single_line
from mixmatch.output import log

if TYPE_CHECKING:
    from mixmatch.training.trainer import Trainer

# On an H200 compiling WRN-28-2 costs 57 s and saves 2.7 ms a step: it pays from about 21,000 steps on.
STEPS_WORTH_COMPILING = 20_000


class ExecutionMode(NamedTuple):
    """A way to execute a step.

    Attributes:
        name: for messages.
        compiled: by torch.compile.
        cuda_graph: recorded, and replayed at each step.
        disable_flag: the override that turns it off.
    """

    name: str
    compiled: bool
    cuda_graph: bool
    disable_flag: str = ""


EAGER = ExecutionMode("eager", False, False)
CUDA_GRAPH = ExecutionMode("CUDA graph", False, True, "train.cuda_graph=false")
COMPILED = ExecutionMode("compiled", True, False, "train.compile=false")
COMPILED_CUDA_GRAPH = ExecutionMode("compiled CUDA graph", True, True, "train.compile=false")


def list_execution_modes(settings: TrainSettings, device: torch.device, steps_left: int) -> list[ExecutionMode]:
    """Return the modes to try, the fastest first, by the config and the length of the run."""
    on_gpu = device.type == "cuda"
    worth_compiling = on_gpu and steps_left >= STEPS_WORTH_COMPILING
    compiled = worth_compiling if settings.compile == "auto" else settings.compile
    cuda_graph = on_gpu and settings.cuda_graph is not False
    modes = []
    if compiled and steps_left:
        modes.append(COMPILED_CUDA_GRAPH if cuda_graph else COMPILED)
    if cuda_graph and steps_left:
        modes.append(CUDA_GRAPH)
    return [*modes, EAGER]


def select_execution_mode(
    trainer: "Trainer",
    modes: Sequence[ExecutionMode],
    print_line: Callable[[str], None],
    warn: Callable[[str], None],
) -> ExecutionMode:
    """Let the trainer use the first of ``modes`` that works, and return it; its state does not change.

    Several processes use the same mode: the first that works in all of them.

    Args:
        trainer: at any step.
        modes: from ``list_execution_modes``; the last one is EAGER.
        print_line: called with a line before compiling and recording.
        warn: called with a line for each mode that fails.
    """
    for mode in modes:
        trainer.set_execution_mode(mode)
        if mode == EAGER:
            break
        what = "compiling" if mode.compiled else "recording"
        print_line(f"{what} the training step ({mode.disable_flag} skips this) ...")
        # All processes must know that one failed to compile before they wait for its gradients.
        cause = _failure(trainer, trainer.compile) or _failure(trainer, trainer.prepare)
        if cause is None:
            break
        warn(f"execution mode {mode.name!r} failed: {cause}; going on without it ({mode.disable_flag} skips it)")
    return trainer.mode


def _failure(trainer: "Trainer", stage: Callable[[], None]) -> str | None:
    """Run a stage, and return in one line why it failed, in this process or another; None if it did not."""
    cause = None
    try:
        stage()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
    except UserError:  # of the method
        raise
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise anything
        cause = explain_failure(error)
    if not trainer.distributed.all_reduce_max([cause is not None])[0]:
        return None
    if cause is not None and not trainer.distributed.is_main:  # only the main process warns otherwise
        log.warning(f"rank {trainer.distributed.rank}: {cause}")
    return cause or "it failed in another process"


def explain_failure(error: BaseException) -> str:
    """Return in one line why compiling or recording failed."""
    if isinstance(error, torch.OutOfMemoryError):
        return "not enough GPU memory; lower train.batch_size"
    # A broken capture raises an error of its own; the cause was raised before.
    while (earlier := error.__cause__ or (error.__context__ if "captur" in str(error) else None)) is not None:
        error = earlier
    # Compilers print pages: the line with "error:", else the first one.
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    text = single_line(next((line for line in lines if "error:" in line), lines[0]))[:200]
    return f"{type(error).__name__}: {text}"
