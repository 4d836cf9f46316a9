"""Recording a training step as a CUDA graph: hundreds of kernels for the cost of one launch.

The step must only launch work on the device. What changes from step to step is read from tensors that the host fills
before each replay; random numbers come from a generator that the graph knows.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator

_capturing = threading.Lock()
WARM_UP_STEPS = 3  # CUDA graphs ask for them, on a side stream: libraries load their kernels


def capture(step: Callable[[], None], generator: Generator) -> torch.cuda.CUDAGraph:
    """Run ``step`` a few times, then record it.

    Args:
        step: launches one training step on the current stream.
        generator: of the step's random numbers, on the same device.
    """
    device = generator.device
    usual = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step()
    usual.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    registering = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14)
    if registering:  # later versions find the generators of a graph
        graph.register_generator_state(generator)
    try:
        with (
            _capturing,
            _no_garbage_collection(),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            step()
    except BaseException:
        # A broken capture leaves its own stream current, and on earlier versions its generators waiting for its end.
        torch.cuda.set_stream(usual)
        if registering:
            for each in (generator, torch.cuda.default_generators[device.index or 0]):
                each.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
        raise
    return graph


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from freeing device memory, which would break a recording."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
