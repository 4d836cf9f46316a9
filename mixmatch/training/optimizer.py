"""The optimizer of the ``train`` section: Adam, SGD with momentum and step decay, or Muon."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mixmatch.config import TrainSettings
from mixmatch.training.muon import Muon


def make_optimizer(settings: TrainSettings, parameters: Iterable[nn.Parameter], device: torch.device) -> Optimizer:
    """Return the optimizer that ``settings`` names."""
    on_gpu = device.type == "cuda"
    # On a GPU the learning rate is a tensor: a recorded step can then be given another.
    lr = torch.tensor(settings.lr, device=device) if on_gpu else settings.lr
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=on_gpu, capturable=on_gpu)
    if settings.optimizer == "muon":
        of_kernels = settings.muon_lr / settings.lr
        return Muon(parameters, lr, of_kernels, settings.momentum, fused=on_gpu, capturable=on_gpu)
    return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=on_gpu)


def learning_rate(settings: TrainSettings, step: int, begun_at: int = 0) -> float:
    """Return the learning rate after ``step`` completed steps of a run that began at step ``begun_at``.

    Cosine is lr * cos(7/16 * pi * done), FixMatch's (arXiv:2001.07685, section 2.4).
    """
    done = (step - begun_at) / (settings.steps - begun_at)
    lr = settings.lr
    if settings.lr_schedule == "cosine":
        lr *= math.cos(7 / 16 * math.pi * done)
    elif settings.lr_schedule == "linear":
        lr *= 1 - done
    if settings.optimizer != "sgd":
        return lr
    return lr * settings.lr_decay_factor ** sum(step >= at for at in settings.lr_decay_steps)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give the optimizer another learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def copy_all(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names.

    Raises:
        ValueError: if names or shapes differ.
    """
    if targets.keys() != sources.keys():
        raise ValueError("it lacks entries of this network and method, or has others")
    for name, target in targets.items():
        if sources[name].shape != target.shape:
            raise ValueError(f"{name} has shape {tuple(sources[name].shape)} instead of {tuple(target.shape)}")
        target.copy_(sources[name])


def load_optimizer(optimizer: Optimizer, entries: dict[str, Tensor]) -> None:
    """Restore an optimizer from entries named ``<number of the parameter>.<key>``.

    Raises:
        ValueError: if they are not of this optimizer.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in entries.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state.items():
        if not 0 <= number < len(parameters) or values.keys() != _keys(optimizer, parameters[number]):
            raise ValueError("its optimizer is another one, or of another network")
        for key, value in values.items():
            expected = torch.Size() if key == "step" else parameters[number].shape
            if value.shape != expected or not value.is_floating_point():
                raise ValueError(f"optimizer.{number}.{key} has shape {tuple(value.shape)}, {value.dtype}")
            if key != "step":  # moments lie in memory as their parameters do, which files do not tell
                values[key] = torch.empty_like(parameters[number]).copy_(value)
    if isinstance(optimizer, torch.optim.SGD) and state:
        # What has just joined, as a method's own output in a round, starts at rest; fused SGD wants all or none.
        for number, parameter in enumerate(parameters):
            state.setdefault(number, {"momentum_buffer": torch.zeros_like(parameter)})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _keys(optimizer: Optimizer, parameter: nn.Parameter) -> set[str]:
    with_momentum = isinstance(optimizer, torch.optim.SGD) or (isinstance(optimizer, Muon) and parameter.dim() == 4)
    return {"momentum_buffer"} if with_momentum else {"step", "exp_avg", "exp_avg_sq"}
