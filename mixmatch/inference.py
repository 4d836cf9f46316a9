"""A trained network by itself, to be used on images that nobody trained on."""

import importlib.util
import warnings
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mixmatch.config import build_config
from mixmatch.data import load_data
from mixmatch.data.dataset import ImageSpec
from mixmatch.errors import UserError
from mixmatch.evaluation import predict
from mixmatch.files import DamagedFile, explain_os_errors, load_tensors, save_tensors
from mixmatch.models import Network, NetworkSettings, build_network
from mixmatch.runs.directory import RunDirectory


class Classifier(nn.Module):
    """A network in evaluation mode, and what it must be given.

    Attributes:
        network: with averaged weights.
        spec: what it was trained to see.
        classes: names, in the order of the outputs.
        settings: the ``model`` section that it was built from.
        precision: that it is evaluated in, ``float32`` or ``bfloat16``.
    """

    def __init__(self, network: Network, spec: ImageSpec, settings: NetworkSettings, precision: str) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.spec, self.classes, self.settings, self.precision = spec, spec.classes, settings, precision
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, size, size), scaled as ``spec`` says, to logits (n, C)."""
        return self.network(x)

    def predict(self, images: Tensor | np.ndarray) -> Tensor:
        """Return class probabilities, as an evaluation while training does.

        Args:
            images: (n, size, size, channels) uint8, on any device.

        Returns:
            (n, C) float32 on the network's device.

        Raises:
            ValueError: if the images have another shape or type.
        """
        spec, images = self.spec, torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.shape[1:] != (spec.size, spec.size, spec.channels):
            raise ValueError(
                f"images must be (n, {spec.size}, {spec.size}, {spec.channels}) uint8, "
                f"got {tuple(images.shape)} {images.dtype}"
            )
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return predict(self.network, images, device)


def load_model(path: Path | str, device: str = "cpu", best: bool = False) -> Classifier:
    """Load the averaged network of a run, finished or not, with the BatchNorm statistics that it is evaluated with.

    Of its data nothing is needed, but for runs of versions that did not write images.json.

    Args:
        path: a run directory, or the model.safetensors of one, which needs no other file.
        device: where the network will be.
        best: of a run, take the checkpoint that was best on the validation images instead of the newest.

    Raises:
        UserError: if there is no run and no model, or none that can be used.
    """
    path = Path(path)
    if path.is_file():
        return _load_file(path, device)
    run = RunDirectory(path)
    config = run.read_config()
    saved = run.load_best() if best else run.load_newest()
    if saved is None:
        raise UserError(f"{path}: has no checkpoint; train it first with main.py --run-dir {path}")
    state, progress = saved
    spec = run.read_images() or load_data(config.data, torch.device("cpu")).spec()
    weights: dict[str, Tensor] = {}
    for part in ("model.", "ema."):
        weights |= {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
    what = f"{path}: the checkpoint at step {progress.step}"
    return _build(config.model, spec, weights, progress.precision or "float32", device, what)


def save_model(classifier: Classifier, path: Path, folder: int | None = None) -> None:
    """Write a network and all that is needed to use it to one safetensors file, which ``load_model`` takes.

    ``folder`` as for ``write_atomically``.

    Raises:
        UserError: if it cannot be written.
    """
    meta = {
        "model": classifier.settings.model_dump(),
        "images": asdict(classifier.spec),
        "precision": classifier.precision,
    }
    save_tensors(path, classifier.network.state_dict(), meta, folder)


def _load_file(path: Path, device: str) -> Classifier:
    try:
        weights, meta = load_tensors(path)
        spec = TypeAdapter(ImageSpec).validate_python(meta["images"])
        settings = build_config({"model": meta["model"]}, str(path)).model
        precision = str(meta["precision"])
    except (DamagedFile, OSError, ValidationError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no model that can be used ({str(error).splitlines()[0]})") from None
    return _build(settings, spec, weights, precision, device, str(path))


def _build(
    settings: NetworkSettings,
    spec: ImageSpec,
    weights: dict[str, Tensor],
    precision: str,
    device: str,
    what: str,
) -> Classifier:
    if (spec.mean, spec.std) != (127.5, 127.5):
        raise UserError(f"{what}: pixels are scaled in a way that this version does not know")
    network = build_network(settings, len(spec.classes), spec.channels)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{what} does not fit ({str(error).splitlines()[0]})") from None
    network = network.to(device, memory_format=torch.channels_last)
    return Classifier(network, spec, settings, precision)


def export_onnx(classifier: Classifier, path: Path) -> None:
    """Write the network as ONNX: images (n, channels, size, size), scaled as ``spec`` says, to logits (n, C).

    Raises:
        UserError: if a package is missing, or the file cannot be written.
    """
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--export: needs {name}; pip install onnx onnxscript")
    spec = classifier.spec
    device = next(classifier.parameters()).device
    example = torch.zeros(2, spec.channels, spec.size, spec.size, device=device)
    with explain_os_errors(path), warnings.catch_warnings(), redirect_stdout(None):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            classifier,
            (example,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: torch.export.Dim("n")}},
            external_data=False,
        )
