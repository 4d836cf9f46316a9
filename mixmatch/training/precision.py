"""In which type convolutions and the dense layer are computed."""

import copy

import torch
from torch import nn

# Operations of the forward pass of an image from which bfloat16 is faster on a CPU. On an AMD EPYC with AVX-512 BF16 it
# takes 0.92 of float32's time at 1.6 million (WRN-10-1, 8x8), 0.77 at 6 million (16x16), 0.6 at 25 million (32x32).
LEAST_FLOP_ON_CPU = 4e6


def choose_precision(name: str, device: torch.device, network: nn.Module, shape: tuple[int, int, int]) -> str:
    """Turn the config's ``train.precision`` into ``float32`` or ``bfloat16``.

    ``auto`` is bfloat16 on GPUs that compute in it, and on processors that do if the network is large enough to gain.

    Args:
        name: of the config.
        device: that will compute.
        network: that will be trained.
        shape: (c, h, w) of an image.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    features = torch.cpu.get_capabilities()
    able = features.get("amx_bf16") or features.get("avx512_bf16")
    return "bfloat16" if able and count_flop(network, shape) >= LEAST_FLOP_ON_CPU else "float32"


def count_flop(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count the operations of convolutions and dense layers for one image (c, h, w), multiply and add apart."""
    total = 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * module.weight[0].numel() * output.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    parameter, training = next(network.parameters()), network.training
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return total


def make_twin(model: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, list[tuple[nn.Parameter, nn.Parameter]]]:
    """Make a network that shares all of ``model`` but the weights of convolutions and dense layers.

    Returns:
        The network, and pairs of a weight of ``model`` and its copy of another type.
    """
    twin, copies = copy.deepcopy(model), {}
    for ours, theirs in zip(twin.modules(), model.modules(), strict=True):
        ours._buffers = theirs._buffers
        for name, parameter in theirs._parameters.items():
            if parameter is not None and name == "weight" and isinstance(theirs, nn.Conv2d | nn.Linear):
                if parameter not in copies:  # one may serve several layers
                    cast = parameter.detach().to(dtype)
                    copies[parameter] = nn.Parameter(cast, requires_grad=parameter.requires_grad)
                ours._parameters[name] = copies[parameter]
            else:
                ours._parameters[name] = parameter
    return twin, list(copies.items())
