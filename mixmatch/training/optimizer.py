"""The optimizers of the ``train`` section: Adam, SGD with momentum and step decay, or Muon."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mixmatch.config.schema import TrainSettings
from mixmatch.models import Network
from mixmatch.training.muon import Muon


def group_parameters(settings: TrainSettings, network: Network, head: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters in groups for an optimizer, from the input to the last layer.

    Args:
        settings: the ``train`` section.
        network: its layers get ``settings.layer_decay``.
        head: of the method, trained like the last layer.

    Returns:
        For each group ``params``; ``lr_scale``, its learning rate divided by that of the run; and ``decayed``, those
        of ``params`` to which weight decay applies.
    """
    depths = network.layer_depths()
    last = max(depths.values())
    head_scale = (settings.head_lr or settings.lr) / settings.lr
    groups: dict[float, dict[str, Any]] = {}

    def add(parameter: Tensor, lr_scale: float, decays: bool) -> None:
        group = groups.setdefault(lr_scale, {"params": [], "lr_scale": lr_scale, "decayed": []})
        group["params"].append(parameter)
        if decays:
            group["decayed"].append(parameter)

    for name, parameter in network.named_parameters():
        is_last = name.startswith("dense.")
        lr_scale = head_scale if is_last else settings.layer_decay ** (last - depths[name])
        add(parameter, lr_scale, network.has_weight_decay(name))
    for parameter in head.parameters():
        add(parameter, head_scale, parameter.dim() > 1)
    return list(groups.values())


def make_optimizer(settings: TrainSettings, groups: Sequence[Mapping[str, Any]], device: torch.device) -> Optimizer:
    """Return the optimizer that ``settings`` names.

    Args:
        settings: the ``train`` section.
        groups: from ``group_parameters``.
        device: of the parameters.
    """
    on_gpu = device.type == "cuda"

    def rate() -> Tensor | float:
        """Return a learning rate; on a GPU it is a tensor, which a CUDA graph reads at each replay."""
        return torch.tensor(settings.lr, device=device) if on_gpu else settings.lr

    parameters = [{"params": group["params"], "lr_scale": group["lr_scale"], "lr": rate()} for group in groups]
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, fused=on_gpu, capturable=on_gpu)
    if settings.optimizer == "muon":
        ratio = settings.muon_lr / settings.lr
        return Muon(parameters, rate(), ratio, settings.momentum, fused=on_gpu, capturable=on_gpu)
    return torch.optim.SGD(parameters, lr=rate(), momentum=settings.momentum, nesterov=settings.nesterov, fused=on_gpu)


def learning_rate(settings: TrainSettings, step: int, start_step: int = 0, freeze_until: float = 0) -> float:
    """Return the learning rate after ``step`` completed steps of a run that started at ``start_step``.

    It warms up at step 0, and again at ``freeze_until``, when layers that were frozen are trained. Cosine is
    lr * cos(7/16 * pi * progress), FixMatch's (arXiv:2001.07685, section 2.4).
    """
    progress = (step - start_step) / (settings.steps - start_step)
    lr = settings.lr
    if settings.lr_schedule == "cosine":
        lr *= math.cos(7 / 16 * math.pi * progress)
    elif settings.lr_schedule == "linear":
        lr *= 1 - progress
    warmed_up = step - freeze_until if step >= freeze_until else step
    if warmed_up < settings.warmup_steps:
        lr *= (warmed_up + 1) / settings.warmup_steps
    if settings.optimizer == "sgd":
        lr *= settings.lr_decay_factor ** sum(step >= at for at in settings.lr_decay_steps)
    return lr


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of each group, in place where it is a tensor."""
    for group in optimizer.param_groups:
        scaled = lr * group["lr_scale"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


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


def save_optimizer(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the optimizer, named ``<parameter>.<key>``."""
    return {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimizer(optimizer: Optimizer, parameters: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> None:
    """Restore the state from the entries of ``save_optimizer``, of the same optimizer.

    Raises:
        ValueError: if they are of other parameters.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for entry, value in entries.items():
        name, _, key = entry.rpartition(".")
        if name not in parameters:
            raise ValueError(f"optimizer.{entry} is of another network, method or version of this program")
        # A copy; but for ``step`` in the memory format of the parameter.
        copied = value.clone() if key == "step" else torch.empty_like(parameters[name]).copy_(value)
        state.setdefault(name, {})[key] = copied
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.load_state_dict(
        {
            "state": {index: state[name] for index, name in enumerate(ordered) if name in state},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
    join_others(optimizer, parameters.values())


def join_others(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Start parameters that join those with momentum, such as thawed ones, at zero: fused SGD wants all or none."""
    if isinstance(optimizer, torch.optim.SGD) and optimizer.state:
        for parameter in parameters:
            if parameter.requires_grad:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
