"""What each of two processes does in test_ranks.py: train, and leave what it has for the test to compare."""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from mixmatch.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from mixmatch.training.trainer import Trainer
from tests.factories import make_toy_trainer

STEPS = 50


def make_trainer(ranks: DistributedContext) -> Trainer:
    """Return a small trainer, the same on every rank but for its share."""
    return make_toy_trainer(ranks=ranks, model={"width": 0.5}, train={"batch_size": 8}, mixmatch={"ramp_up_steps": 5})


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return a copy of them."""
    return [parameter.grad.clone() for parameter in model.parameters()]


def main(folder: Path) -> None:
    """Do one step by DDP and by the trainer, then the rest, and save what came of it."""
    with init_distributed("cpu") as ranks:
        twin = make_trainer(DistributedContext(ranks.rank, ranks.world, ranks.local))
        twin.give_inputs()
        _, examples = twin._make_examples(*twin._draw())
        wrapped = DistributedDataParallel(twin.model, broadcast_buffers=False)
        twin.method.loss(wrapped, examples, twin.schedules).total.backward()
        left = {"ddp": gradients(twin.model)}
        del wrapped  # it holds the group

        trainer = make_trainer(ranks)
        trainer.train_step()
        left["ours"] = gradients(trainer.model)
        for _ in range(STEPS - 1):
            trainer.train_step()
        left["state"] = trainer.state()
        left["alike"] = ranks.gather(torch.tensor([ranks.rank])).tolist()
        assert SINGLE_PROCESS.world == 1
    left["threads"] = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    torch.save(left, folder / f"rank-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
