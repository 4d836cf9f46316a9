"""The ways to compute a step, and one of them: a CUDA graph of it all, hundreds of kernels for the cost of one launch.

The step must do nothing but launch work on the device: what changes from step to step reaches it through tensors that
are filled beforehand, and its random numbers come from a generator that the graph knows.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Generator, Tensor

_capturing = threading.Lock()
WARM_UP_STEPS = 3  # on a side stream, as CUDA graphs ask for: libraries choose and load their kernels


class ExecutionMode(NamedTuple):
    """A way to compute a step.

    Attributes:
        name: for a person.
        compiled: by torch.compile.
        recorded: as a CUDA graph, replayed at each step.
        skip: what to set to leave it out.
    """

    name: str
    compiled: bool
    recorded: bool
    skip: str = ""


COMPILED = ExecutionMode("compiled", True, False, "train.compile=false")
COMPILED_CUDA_GRAPH = ExecutionMode("compiled and recorded", True, True, "train.compile=false")
CUDA_GRAPH = ExecutionMode("recorded", False, True, "train.cuda_graph=false")
EAGER = ExecutionMode("plain", False, False)


def capture(
    step: Callable[[], None], state: Callable[[], dict[str, Tensor]], generator: Generator, keep_graph: bool = False
) -> torch.cuda.CUDAGraph:
    """Record ``step`` and return the graph that replays it. Nothing that ``state`` names is changed by the recording.

    Args:
        step: launches one training step on the current stream.
        state: returns, by name, every tensor that a step changes. Those that the first step creates start at zero.
        generator: of the step's random numbers, on the same device.
        keep_graph: keep what was recorded, to look at it.
    """
    seed, offset = generator.initial_seed(), generator.get_offset()
    before = {name: value.clone() for name, value in state().items()}
    stream = torch.cuda.Stream(generator.device)
    stream.wait_stream(torch.cuda.current_stream(generator.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step()
    torch.cuda.current_stream(generator.device).wait_stream(stream)
    with torch.no_grad():
        for name, value in state().items():
            value.copy_(before[name]) if name in before else value.zero_()
    graph = torch.cuda.CUDAGraph(keep_graph=True) if keep_graph else torch.cuda.CUDAGraph()
    registering = needs_registration(torch.__version__)
    if registering:
        graph.register_generator_state(generator)
    usual = torch.cuda.current_stream(generator.device)
    try:
        with _capturing, no_garbage(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except BaseException:
        # A broken capture leaves its stream current, and on earlier versions its generators waiting for its end.
        torch.cuda.set_stream(usual)
        if registering:
            for each in (generator, torch.cuda.default_generators[generator.device.index or 0]):
                each.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
        raise
    finally:
        generator.manual_seed(seed)
        generator.set_offset(offset)
    return graph


def needs_registration(version: str) -> bool:
    """Tell whether this version of torch must be told of a graph's generators: later ones do it, and warn if told."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) < (2, 14)


@contextmanager
def no_garbage() -> Iterator[None]:
    """Keep Python from freeing what it finds unused meanwhile: to free a device's memory would break a recording."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
