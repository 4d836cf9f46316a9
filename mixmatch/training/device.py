"""The device that a run is computed on: which one, what it has kernels for, and what running out of it means."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from mixmatch.config import Config
from mixmatch.data.dataset import free_memory
from mixmatch.distributed import SINGLE_PROCESS, DistributedContext
from mixmatch.errors import UserError
from mixmatch.models import NetworkSettings, build_network

COPIES = 5  # of the weights: themselves, gradients, two moments, the average


def choose_device(
    name: str, ranks: DistributedContext = SINGLE_PROCESS, say: Callable[[str], None] = print
) -> torch.device:
    """Turn the config's ``device`` into one that is there and can be used.

    Each rank of a machine gets a GPU of its own. ``auto`` takes the CPU, and says so, where this build of torch has no
    kernels for the GPU.

    Args:
        name: of the config.
        ranks: the processes that train together.
        say: called with a line if the GPU that is there is not used.

    Raises:
        UserError: if it is not there, or cannot be used.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(f"cuda:{ranks.local if ranks.world > 1 else 0}" if chosen == "cuda" else chosen)
    if device.type == "cpu":
        return device
    if device.index >= torch.cuda.device_count():
        raise UserError(f"device: {device} is not there ({torch.cuda.device_count()} GPUs found); use auto or cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's page about a GPU that it has no kernels for: said in a line below
        capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and not has_kernels(capability, torch.cuda.get_arch_list()):
        line = (
            f"this build of torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)} "
            f"(compute capability {'.'.join(map(str, capability))})"
        )
        if name != "auto":
            raise UserError(f"device: {line}; use device=cpu, or install a build that has")
        say(f"note: {line}: training on the CPU")
        return torch.device("cpu")
    torch.cuda.set_device(device)  # streams and graphs are made on the current one
    return device


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Tell whether a build of torch for architectures such as ``sm_80`` and ``compute_90`` runs on a GPU.

    Machine code (sm) runs on GPUs of its generation from its own version on; what is left to the driver to
    compile (compute), on all later ones.
    """
    for name in built_for:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if not parts:
            continue
        version = int(parts[2]), int(parts[3])
        if parts[4] == "a":  # exactly that GPU
            runs = version == capability
        elif parts[1] == "sm" or parts[4] == "f":
            runs = version[0] == capability[0] and version[1] <= capability[1]
        else:
            runs = version <= capability
        if runs:
            return True
    return False


@contextmanager
def explain_memory(config: Config, device: torch.device) -> Iterator[None]:
    """Turn the device's running out of memory into a UserError of one line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # What torch raises where the CPU's memory does not suffice is told by its text alone.
        if type(error) is RuntimeError and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            f"{device} is out of memory with train.batch_size={config.train.batch_size}; lower that, model.width or "
            "data.image_size, or free the device of other programs"
        ) from None


def check_room(settings: NetworkSettings, num_classes: int, channels: int, device: torch.device) -> None:
    """See that a network, its gradient, two moments of an optimizer and its average find room.

    Args:
        settings: the ``model`` section.
        num_classes, channels: of the images.
        device: that it will be trained on.

    Raises:
        UserError: if they do not.
    """
    with torch.device("meta"):
        network = build_network(settings, num_classes, channels)
    count = sum(parameter.numel() for parameter in network.parameters())
    needed = 4 * COPIES * count
    for place, free in free_memory(device).items():
        if needed > free:
            raise UserError(
                f"model: {settings.title()} has {count:,} parameters, to train which takes {needed / 2**30:.1f} GiB; "
                f"{place} has {free / 2**30:.1f} GiB of memory free: choose a smaller one"
            )


def environment(device: torch.device, ranks: DistributedContext) -> str:
    """Return what bit-identity hangs on: the version of torch, the device, processes, and on the CPU threads."""
    several = f" in {ranks.world} processes" if ranks.world > 1 else ""
    if device.type == "cuda":
        return f"torch {torch.__version__} on {torch.cuda.get_device_name(device)}{several}"
    return f"torch {torch.__version__} on the CPU with {torch.get_num_threads()} threads{several}"
