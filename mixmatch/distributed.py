"""Training in several processes, started by torchrun: one process per GPU.

Each process computes its share of the batch and of the evaluation; the main process alone writes the run directory.
Collectives use NCCL for tensors on GPUs and gloo for tensors on the CPU.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mixmatch.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # of a collective: one process may read images while the others wait
LOST_PROCESS = re.compile(r"[Cc]onnection|Read error|Write error|Broken pipe|remote process|[Tt]imed out")


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Raise UserError where a collective fails because another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not LOST_PROCESS.search(str(error)):
            raise
        raise UserError("another process has ended; the same command continues from the last checkpoint") from None


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, as one of them sees them. With one process, collectives return their input.

    Attributes:
        rank: number of this process, 0 .. world_size - 1.
        world_size: number of processes.
        local_rank: number of this process on its machine, and of its GPU.
        local_world_size: number of processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def local_batch_size(self, batch_size: int) -> int:
        """Return the number of labeled images per step and process.

        Raises:
            UserError: if ``batch_size`` cannot be divided.
        """
        size, rest = divmod(batch_size, self.world_size)
        if rest or size < 2:
            raise UserError(
                f"train.batch_size: {batch_size} cannot be divided among {self.world_size} processes; "
                "use a multiple of their number, at least 2 for each"
            )
        return size

    @explain_lost_process()
    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one collective that a CUDA graph can hold."""
        if self.world_size == 1:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            flat /= self.world_size
            means = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(list(tensors), [mean.view(t.shape) for mean, t in zip(means, tensors, strict=True)])

    @explain_lost_process()
    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """Return the maximum over the processes of each number."""
        if self.world_size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [int(number) for number in tensor]

    @explain_lost_process()
    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, concatenated along the first dimension."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def broadcast_from_main(self, compute: Callable[[], T]) -> T:
        """Return the result of ``compute`` in the main process, which alone calls it; a UserError is raised in all."""
        if self.world_size == 1:
            return compute()
        values: list[T | UserError | None] = [None]
        if self.is_main:
            try:
                values = [compute()]
            except UserError as error:
                values = [error]
        with explain_lost_process():
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        if isinstance(values[0], UserError):
            values[0].printed_by_main = not self.is_main
            raise values[0]
        result: T = values[0]  # type: ignore[assignment] # the broadcast has replaced None
        return result

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Let the first process of each machine run the block before the others."""
        if self.local_rank:
            self.all_reduce_max([0])
        yield
        if not self.local_rank:
            self.all_reduce_max([0])


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed(device: str) -> Iterator[DistributedContext]:
    """Connect to the other processes that torchrun has started, if any.

    Args:
        device: from the config.

    Raises:
        UserError: if the processes cannot connect, or ``device`` is one GPU for all.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    if ":" in device:
        raise UserError(f"device: {device} cannot serve {world_size} processes; use auto, cuda or cpu")
    # torch.optim imports this. Imported while there is a process group, it would keep the group and its gloo threads
    # alive, which now and then abort the process at its exit.
    importlib.import_module("torch._dynamo")
    on_gpus = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    try:
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        context = DistributedContext(rank, world_size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    except KeyError as error:
        raise UserError(f"WORLD_SIZE is {world_size} but {error} is not set; start the command with torchrun") from None
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {world_size} processes cannot connect: {str(error).splitlines()[0]}") from None
    try:
        yield context
    except BaseException:
        # An orderly end would wait for collectives that never come, and for CUDA graphs that contain one.
        if dist.group.WORLD is not None:
            dist.group.WORLD.abort()
        raise
    dist.destroy_process_group()
