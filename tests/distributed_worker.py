"""One of the two processes that test_distributed.py starts: it trains, and saves what the test compares."""

import sys
from pathlib import Path

import torch

from mixmatch.distributed import DistributedContext, init_distributed
from mixmatch.training.trainer import Trainer
from tests.factories import make_toy_trainer

STEPS = 50


def make_trainer(distributed: DistributedContext) -> Trainer:
    """Return a small trainer, by a method with a state and a layer of its own."""
    method = {"num_strong_views": 1, "lambda_rotation": 0.5, "ramp_up_steps": 5, "alignment_window": 8}
    sections = {"model": {"width": 0.5}, "train": {"batch_size": 8}, "remixmatch": method}
    return make_toy_trainer(distributed=distributed, method="remixmatch", **sections)


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return a copy of the gradients."""
    return [parameter.grad.clone() for parameter in model.parameters()]


def main(folder: Path) -> None:
    """Train, and save gradients and the state."""
    with init_distributed("cpu") as distributed:
        trainer = make_trainer(distributed)
        trainer.compile()  # computes gradients without averaging them
        saved = {"local": gradients(trainer.model)}
        trainer.train_step()
        saved["averaged"] = gradients(trainer.model)
        for _ in range(STEPS - 1):
            trainer.train_step()
        saved["state"] = trainer.state()
        saved["predictions"] = trainer.predict(trainer.dataset.images[:9])
        saved["gathered"] = distributed.all_gather(torch.tensor([distributed.rank])).tolist()
    saved["threads"] = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    torch.save(saved, folder / f"rank-{distributed.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
