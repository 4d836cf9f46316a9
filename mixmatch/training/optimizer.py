"""The optimiser of the ``train`` section: Adam, or SGD with momentum and step decay."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mixmatch.config import TrainSettings


def make_optimizer(settings: TrainSettings, parameters: Iterable[nn.Parameter], device: torch.device) -> Optimizer:
    """Return the optimiser that ``settings`` names."""
    on_gpu = device.type == "cuda"
    # On a GPU the learning rate is a tensor: a recorded step can then be given another.
    lr = torch.tensor(settings.lr, device=device) if on_gpu else settings.lr
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=on_gpu, capturable=on_gpu)
    return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=on_gpu)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the learning rate after ``step`` completed steps."""
    if settings.optimizer == "adam":
        return settings.lr
    return settings.lr * settings.lr_decay_factor ** sum(step >= at for at in settings.lr_decay_steps)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give the optimiser another learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_optimizer(optimizer: Optimizer, entries: dict[str, Tensor]) -> None:
    """Restore an optimiser from entries named ``<number of the parameter>.<key>``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in entries.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    # Moments lie in memory as their parameters do, which files do not tell.
    for number, parameter in enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]):
        for key, value in state.get(number, {}).items():
            if value.shape == parameter.shape:
                state[number][key] = torch.empty_like(parameter).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
