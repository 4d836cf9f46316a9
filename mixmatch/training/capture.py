"""A CUDA graph of a whole training step: hundreds of kernels for the cost of one launch.

The step must do nothing but launch work on the device: what changes from step to step reaches it through tensors that
are filled beforehand, and its random numbers come from a generator that the graph knows.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

WARM_UP_STEPS = 3  # on a side stream, as CUDA graphs ask for: libraries choose and load their kernels


def capture(
    step: Callable[[], None], state: Callable[[], dict[str, Tensor]], generator: Generator
) -> Callable[[], None]:
    """Record ``step`` and return what replays it. Nothing that ``state`` names is changed by the recording.

    Args:
        step: launches one training step on the current stream.
        state: returns, by name, every tensor that a step changes. Those that the first step creates start at zero.
        generator: of the step's random numbers, on the same device.
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
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        step()
    generator.manual_seed(seed)
    generator.set_offset(offset)
    return graph.replay
