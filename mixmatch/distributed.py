"""Several processes as one run: which of them this one is, and what they do together. torchrun starts them.

Every rank computes its share of the batch and of the evaluation, and all else alike; rank 0 alone reads and writes the
run directory. Collectives go over NCCL for tensors on GPUs and over gloo for those on the CPU.
"""

import importlib
import os
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
# How long ranks wait for one that reads images, or evaluates; one that is gone is noticed at once.
PATIENCE = timedelta(hours=2)
# In the messages of gloo and NCCL.
SIGNS_OF_A_LOST_RANK = (
    "Connection",
    "Read error",
    "Write error",
    "Broken pipe",
    "remote process",
    "Timed out",
    "timed out",
)


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run.

    Attributes:
        rank: this one's number, 0 .. world - 1.
        world: how many there are; with one, nothing is ever sent.
        local: this one's number on its machine, and that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return which of ``count`` things are this rank's; ``world`` divides ``count``."""
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def share_batch(self, batch_size: int) -> int:
        """Return how many of ``batch_size`` labeled images a step each process takes.

        Raises:
            UserError: if they cannot share.
        """
        share, rest = divmod(batch_size, self.world)
        if rest or share < 2:
            raise UserError(
                f"train.batch_size: {batch_size} cannot be shared by {self.world} processes; "
                "it must be a multiple of their number, with 2 or more for each"
            )
        return share

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over ranks in place of each tensor, all of them in one message.

        All of it is device work in a fixed order, which a CUDA graph can hold.
        """
        if self.world == 1:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            with explain_lost_rank():
                dist.all_reduce(flat)
            flat /= self.world
            means = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(list(tensors), [mean.view(t.shape) for mean, t in zip(means, tensors, strict=True)])

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, of one shape, one after the other along the first dimension."""
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        with explain_lost_rank():
            dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Return for each of ``numbers`` the largest that a rank has."""
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)
        with explain_lost_rank():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return what ``compute`` gives on rank 0, where alone it is called."""
        if self.world == 1:
            return compute()
        values = [compute() if self.first else None]
        with explain_lost_rank():
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]

    @contextmanager
    def one_before_the_others(self) -> Iterator[None]:
        """Let the first rank of each machine through, and the others when it is done."""
        if self.local:
            self.largest([0])
        yield
        if not self.local:
            self.largest([0])


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed(device: str) -> Iterator[DistributedContext]:
    """Meet the other processes that torchrun has started; without torchrun there are none.

    Args:
        device: the config's.

    Raises:
        UserError: if the meeting fails, or ``device`` names one GPU for all of them.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        yield SINGLE_PROCESS
        return
    try:
        ranks = DistributedContext(int(os.environ["RANK"]), int(world), int(os.environ["LOCAL_RANK"]))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE is {world}, but RANK or LOCAL_RANK is amiss ({error}); start it with torchrun"
        ) from None
    if ":" in device:
        raise UserError(f"device: {device} cannot serve {world} processes; use auto, cuda or cpu")
    # The optimizer loads this. Loaded while there is a group, it keeps it for good, and with it gloo's threads, which
    # abort the process at its end once in a while.
    importlib.import_module("torch._dynamo")
    on_gpus = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {world} processes cannot meet: {str(error).splitlines()[0]}") from None
    try:
        yield ranks
    except BaseException:
        # To end in order would wait for messages that never come, and for recorded steps that still hold one.
        dist.group.WORLD.abort()
        raise
    dist.destroy_process_group()


@contextmanager
def explain_lost_rank() -> Iterator[None]:
    """Turn what collectives raise when a process is gone into a UserError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in SIGNS_OF_A_LOST_RANK):
            raise
        raise UserError(
            "another process of this run has ended; the same command continues from the last checkpoint"
        ) from None
