"""The device of a run: choosing it, running out of its memory, and what bit-identical results depend on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixmatch.config.schema import Config
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import UserError
from mixmatch.output import log


def choose_device(name: str, distributed: DistributedContext = SINGLE_PROCESS) -> torch.device:
    """Turn the config's ``device`` into a device that exists and works.

    Each process on a machine gets a GPU of its own. ``auto`` is the CPU, with a warning, where this build of torch
    has no kernels for the GPU.

    Raises:
        UserError: if the device does not exist or cannot be used.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(f"cuda:{distributed.local_rank}" if chosen == "cuda" else chosen)
    if device.type == "cpu":
        return device
    if device.index >= torch.cuda.device_count():
        raise UserError(f"device: {device} does not exist ({torch.cuda.device_count()} GPUs found); use auto or cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch prints a page about a GPU without kernels; one line follows below
            torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        line = f"torch {torch.__version__} does not work on {torch.cuda.get_device_name(device)} ({reason})"
        if name != "auto" or "kernel image" not in reason:  # it may be in use, or its memory full
            raise UserError(
                f"device: {line}; use the CPU (device=cpu or --device cpu), or install another build of torch"
            ) from None
        if distributed.is_main:
            log.warning(f"{line}: using the CPU")
        return torch.device("cpu")
    torch.cuda.set_device(device)  # streams and graphs are created on the current device
    return device


@contextmanager
def explain_out_of_memory(device: torch.device, config: Config | None = None) -> Iterator[None]:
    """Turn running out of memory into a UserError of one line.

    Args:
        device: which computes.
        config: of a run that is trained.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch raises a RuntimeError that only its text identifies.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        advice = "" if device.type == "cpu" else "use --device cpu, or "
        if config is not None:
            advice = (
                f"lower train.batch_size ({config.train.batch_size} now), data.image_size, the unlabeled ratio, the "
                "number of views or the size of the network, or "
            )
        raise UserError(f"{device}: out of memory; {advice}stop other programs on the device") from None


def describe_environment(device: torch.device, distributed: DistributedContext) -> str:
    """Return what bit-identical results depend on: torch, device, processes; of a CPU its kind and the threads."""
    processes = f" in {distributed.world_size} processes" if distributed.world_size > 1 else ""
    if device.type == "cuda":
        return f"torch {torch.__version__} on {torch.cuda.get_device_name(device)}{processes}"
    threads = torch.get_num_threads()
    kind = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__} on the CPU ({kind}) with {threads} thread{'s' * (threads > 1)}{processes}"
