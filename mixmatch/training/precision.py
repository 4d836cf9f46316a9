"""The dtype in which convolutions and linear layers are computed."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

N = TypeVar("N", bound=nn.Module)

# FLOPs of a forward pass of one image from which bfloat16 is faster on a CPU. On an AMD EPYC with AVX-512 BF16 it takes
# 0.92 of float32's time at 1.6 million (WRN-10-1, 8x8), 0.77 at 6 million (16x16), 0.6 at 25 million (32x32).
MIN_FLOPS_ON_CPU = 4e6


def choose_precision(name: str, device: torch.device, network: nn.Module, shape: tuple[int, int, int]) -> str:
    """Turn ``train.precision`` into ``float32`` or ``bfloat16``.

    ``auto`` is bfloat16 on GPUs that support it, and on CPUs that do if the network is large enough to be faster.

    Args:
        name: the value in the config.
        device: where the network is trained.
        network: the network, on any device.
        shape: (c, h, w) of an image.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    features = torch.cpu.get_capabilities()
    supported = features.get("amx_bf16") or features.get("avx512_bf16")
    return "bfloat16" if supported and count_flops(network, shape) >= MIN_FLOPS_ON_CPU else "float32"


def count_flops(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count the FLOPs of a forward pass of one image (c, h, w): convolutions and linear layers, 2 a multiply-add."""
    # The counter cannot follow parameters that a network passes to its modules, such as class tokens, with gradient.
    network = copy.deepcopy(network).requires_grad_(False).eval()
    parameter = next(network.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    return int(counter.get_total_flops())


def share_buffers(target: nn.Module, source: nn.Module) -> None:
    """Let ``target``, a copy of ``source``, use the same buffers: BatchNorm's running statistics."""
    for module, original in zip(target.modules(), source.modules(), strict=True):
        for name, buffer in original.named_buffers(recurse=False):
            setattr(module, name, buffer)


def low_precision_copy(model: N, dtype: torch.dtype) -> tuple[N, list[tuple[Tensor, Tensor]]]:
    """Return a copy that shares everything with ``model`` but the weights of convolutions and linear layers.

    Returns:
        The copy, and pairs of a weight of ``model`` and its copy in ``dtype``.
    """
    low_precision = copy.deepcopy(model)
    share_buffers(low_precision, model)
    copies: dict[Tensor, Tensor] = {}
    for module, original in zip(low_precision.modules(), model.modules(), strict=True):
        for name, parameter in original.named_parameters(recurse=False):
            if name == "weight" and isinstance(original, nn.Conv2d | nn.Linear):
                if parameter not in copies:  # a weight may serve several layers
                    copies[parameter] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
                setattr(module, name, copies[parameter])
            else:
                setattr(module, name, parameter)
    return low_precision, list(copies.items())
