"""A trained network by itself, to be used on images that nobody trained on."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mixmatch.data import load_data
from mixmatch.data.images import ImageSpec
from mixmatch.errors import UserError
from mixmatch.evaluation import predict
from mixmatch.models import Network, build_network
from mixmatch.records.run import RunDirectory


class Classifier(nn.Module):
    """A network in evaluation mode, and what it must be given.

    Attributes:
        network: with averaged weights.
        spec: what it was trained to see.
        classes: names, in the order of the outputs.
    """

    def __init__(self, network: Network, spec: ImageSpec) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.spec, self.classes = spec, spec.classes
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, size, size), scaled as ``spec`` says, to logits (n, C)."""
        return self.network(x)

    def predict(self, images: Tensor) -> Tensor:
        """Return class probabilities.

        Args:
            images: (n, size, size, channels) uint8, on any device.

        Returns:
            (n, C) float32 on the network's device.

        Raises:
            ValueError: if the images have another shape or type.
        """
        spec = self.spec
        if images.dtype != torch.uint8 or images.shape[1:] != (spec.size, spec.size, spec.channels):
            raise ValueError(
                f"images must be (n, {spec.size}, {spec.size}, {spec.channels}) uint8, "
                f"got {tuple(images.shape)} {images.dtype}"
            )
        return predict(self.network, images, next(self.network.parameters()).device)


def load_model(path: Path | str, device: str = "cpu") -> Classifier:
    """Load the averaged network of a run, finished or not, with the BatchNorm statistics that it is evaluated with.

    Of its data nothing is needed, but for runs of versions that did not write images.json.

    Args:
        path: the run directory.
        device: where the network will be.

    Raises:
        UserError: if there is no run, or no checkpoint that can be used.
    """
    run = RunDirectory(Path(path))
    config = run.read_config()
    saved = run.load_newest()
    if saved is None:
        raise UserError(f"{path}: has no checkpoint; train it first with main.py --run {path}")
    state, progress = saved
    spec = run.read_images() or load_data(config.data, torch.device("cpu")).spec()
    if (spec.mean, spec.std) != (127.5, 127.5):
        raise UserError(f"{run.images_file}: pixels are scaled in a way that this version does not know")
    network = build_network(config.model, len(spec.classes), spec.channels)
    parts = {"model.": {}, "ema.": {}}
    for name, value in state.items():
        for part, values in parts.items():
            if name.startswith(part):
                values[name.removeprefix(part)] = value
    try:
        network.load_state_dict(parts["model."] | parts["ema."])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: the checkpoint at step {progress.step} does not fit ({reason})") from None
    return Classifier(network.to(device), spec)
