"""The optimizers of the ``train`` section: Adam, SGD with momentum and step decay, or Muon."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mixmatch.config.schema import TrainSettings
from mixmatch.training.muon import Muon


def make_optimizer(settings: TrainSettings, parameters: Iterable[Tensor], device: torch.device) -> Optimizer:
    """Return the optimizer that ``settings`` names."""
    on_gpu = device.type == "cuda"
    # On a GPU the learning rate is a tensor, which a CUDA graph reads at each replay.
    lr = torch.tensor(settings.lr, device=device) if on_gpu else settings.lr
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=on_gpu, capturable=on_gpu)
    if settings.optimizer == "muon":
        ratio = settings.muon_lr / settings.lr
        return Muon(parameters, lr, ratio, settings.momentum, fused=on_gpu, capturable=on_gpu)
    return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=on_gpu)


def learning_rate(settings: TrainSettings, step: int, start_step: int = 0) -> float:
    """Return the learning rate after ``step`` completed steps of a run that started at ``start_step``.

    Cosine is lr * cos(7/16 * pi * progress), FixMatch's (arXiv:2001.07685, section 2.4).
    """
    progress = (step - start_step) / (settings.steps - start_step)
    lr = settings.lr
    if settings.lr_schedule == "cosine":
        lr *= math.cos(7 / 16 * math.pi * progress)
    elif settings.lr_schedule == "linear":
        lr *= 1 - progress
    if settings.optimizer == "sgd":
        lr *= settings.lr_decay_factor ** sum(step >= at for at in settings.lr_decay_steps)
    return lr


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def copy_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names.

    Raises:
        ValueError: if names or shapes differ.
    """
    if targets.keys() != sources.keys():
        raise ValueError("entries are missing, or belong to another network or method")
    for name, target in targets.items():
        if sources[name].shape != target.shape:
            raise ValueError(f"{name} has shape {tuple(sources[name].shape)} instead of {tuple(target.shape)}")
        target.copy_(sources[name])


def load_optimizer(optimizer: Optimizer, entries: dict[str, Tensor]) -> None:
    """Restore the state from entries named ``<index of the parameter>.<key>``.

    Raises:
        ValueError: if they belong to another optimizer or network.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in entries.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        if not 0 <= index < len(parameters) or values.keys() != _state_keys(optimizer, parameters[index]):
            raise ValueError("the optimizer state belongs to another optimizer or network")
        for key, value in values.items():
            expected = torch.Size() if key == "step" else parameters[index].shape
            if value.shape != expected or not value.is_floating_point():
                raise ValueError(f"optimizer.{index}.{key} has shape {tuple(value.shape)}, {value.dtype}")
            if key != "step":  # in the memory format of the parameter
                values[key] = torch.empty_like(parameters[index]).copy_(value)
    if isinstance(optimizer, torch.optim.SGD) and state:
        # A parameter that has joined, such as the head of a stage's method, starts at zero; fused SGD wants all.
        for index, parameter in enumerate(parameters):
            state.setdefault(index, {"momentum_buffer": torch.zeros_like(parameter)})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _state_keys(optimizer: Optimizer, parameter: nn.Parameter) -> set[str]:
    with_momentum = isinstance(optimizer, torch.optim.SGD) or (isinstance(optimizer, Muon) and parameter.dim() == 4)
    return {"momentum_buffer"} if with_momentum else {"step", "exp_avg", "exp_avg_sq"}
