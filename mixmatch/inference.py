"""A trained network for inference: load, predict, save, export."""

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mixmatch.config import build_config
from mixmatch.data.dataset import ImageSpec
from mixmatch.data.folder.decode import Unreadable, decode, decode_opened
from mixmatch.data.stored_images import Images
from mixmatch.data.weak_augmentation import to_float
from mixmatch.errors import UserError, describe_error, short_tracebacks, single_line
from mixmatch.evaluation import compute_outputs
from mixmatch.files import DamagedFile, checksum, load_tensors, save_tensors, write_atomically
from mixmatch.models import Network, NetworkSettings, build_network
from mixmatch.runs.directory import RunDirectory

ImageSource = str | os.PathLike[str] | Image.Image


@dataclass(frozen=True)
class ClassPrediction:
    """The prediction for one image.

    Attributes:
        class_name: the most likely class.
        confidence: its probability.
        probabilities: of all classes, by name.
    """

    class_name: str
    confidence: float
    probabilities: dict[str, float] = field(repr=False)


class Classifier(nn.Module):
    """A network in evaluation mode, with the description of its inputs and outputs.

    Attributes:
        network: with EMA weights.
        spec: the images that it was trained on.
        classes: names, in the order of the outputs.
        settings: the ``model`` section of the config.
        precision: of the evaluation, ``float32`` or ``bfloat16``.
    """

    def __init__(self, network: Network, spec: ImageSpec, settings: NetworkSettings, precision: str) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.spec, self.classes, self.settings, self.precision = spec, spec.classes, settings, precision
        self.eval()

    def __repr__(self) -> str:
        names = ", ".join(self.classes)
        if len(names) > 60:
            names = ", ".join([*names[:60].split(", ")[:-1], "..."])
        size = f"{self.spec.size}x{self.spec.size}x{self.spec.channels}"
        return f"Classifier({self.settings.display_name()}, {size} images, {len(self.classes)} classes: {names})"

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, size, size), normalized by ``spec.mean`` and ``spec.std``, to logits (n, C)."""
        return self.network(x)

    @short_tracebacks
    def predict(self, images: ImageSource | Sequence[ImageSource] | Tensor | NDArray[Any]) -> list[ClassPrediction]:
        """Return the class of each image, computed as in the evaluations of the run.

        Args:
            images: paths or PIL images, one or several, which are made square as those of the run; or pixels, as for
                ``predict_probabilities``.

        Raises:
            UserError: if a file cannot be read as a picture.
            ValueError: if pixels have another shape or type.
        """
        if isinstance(images, Tensor | np.ndarray):
            pixels: Tensor | NDArray[Any] = images
        else:
            several = [images] if isinstance(images, str | os.PathLike | Image.Image) else [*images]
            for image in several:
                if not isinstance(image, str | os.PathLike | Image.Image):
                    raise ValueError(
                        f"images must be paths, PIL images or one array, got a {type(image).__name__} in a list"
                    )
            squares = [self._to_square(image) for image in several]
            pixels = np.stack(squares) if squares else np.empty((0, *self._image_shape()), np.uint8)
        rows = self.predict_probabilities(pixels).cpu().tolist()
        return [
            ClassPrediction(self.classes[row.index(max(row))], max(row), dict(zip(self.classes, row, strict=True)))
            for row in rows
        ]

    def predict_probabilities(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Return class probabilities, computed as in the evaluations of the run.

        Args:
            images: (n, size, size, channels) uint8, on any device.

        Returns:
            (n, C) float32 on the network's device.

        Raises:
            ValueError: if the images have another shape or type.
        """
        return self._compute(images, self.network).softmax(dim=1)

    def embed(self, images: Images | NDArray[Any]) -> Tensor:
        """Return the features from which ``network.dense`` computes logits; the rest as for ``predict_probabilities``.

        Returns:
            (n, D) float32 on the network's device.
        """
        return self._compute(images, self.network.embed)

    def _compute(self, images: Images | NDArray[Any], forward: Callable[[Tensor], Tensor]) -> Tensor:
        if isinstance(images, np.ndarray):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they may be read-only, and are only read
                images = torch.from_numpy(np.ascontiguousarray(images))  # a mirrored view has negative strides
        shape = self._image_shape()
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"images must be (n, {expected}) uint8, got {tuple(images.shape)} {images.dtype}")
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return compute_outputs(self.network, images, device, forward=forward)

    def _image_shape(self) -> tuple[int, int, int]:
        return self.spec.size, self.spec.size, self.spec.channels

    def _to_square(self, image: ImageSource) -> NDArray[np.uint8]:
        spec = self.spec
        try:
            if isinstance(image, Image.Image):
                if 0 in image.size:
                    raise Unreadable("no pixels")
                return decode_opened(image, spec.size, spec.channels, spec).pixels
            return decode(Path(image), spec.size, spec.channels, spec).pixels
        except Exception as error:  # noqa: BLE001 - Pillow's plug-ins raise nearly anything
            raise UserError(f"{image}: cannot be read as a picture ({describe_error(error)})") from None


@short_tracebacks
def load_model(path: Path | str, device: str = "cpu", best: bool = False) -> Classifier:
    """Load the EMA weights of a run, finished or not. The data set is not needed.

    Args:
        path: a run directory, one of its checkpoint files, or a model.safetensors file.
        device: of the network.
        best: load the checkpoint of a run with the best validation accuracy instead of the newest.

    Raises:
        UserError: if the model does not exist or is corrupt.
    """
    path = Path(path).expanduser()
    checkpoint = RunDirectory.of_checkpoint(path)
    if best and path.is_file():
        raise UserError(f"best: {path} is a single network; give the run directory")
    if path.is_file() and checkpoint is None:
        return _load_file(path, device)
    run, step = checkpoint or (RunDirectory(path), None)
    config = run.read_config()
    saved = run.load_best() if best else run.load_newest() if step is None else run.load_step(step)
    if saved is None and run.model_file.exists():
        return _load_file(run.model_file, device)
    if saved is None:
        raise UserError(f"{path}: has no checkpoint; train it first")
    state, progress = saved
    weights: dict[str, Tensor] = {}
    for part in ("model.", "ema."):  # the EMA has parameters only, its BatchNorm statistics are the model's
        weights |= {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
    source = f"{run.path}: the checkpoint at step {progress.step}"
    return _build(config.model, run.read_images(), weights, progress.precision, device, source)


def save_model(classifier: Classifier, path: Path) -> None:
    """Write a safetensors file for ``load_model``.

    Raises:
        UserError: if it cannot be written.
    """
    # Without copies, a weight of several layers could not be saved under each of its names.
    weights = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    save_tensors(path, weights, _metadata(classifier))


def fingerprint(classifier: Classifier) -> str:
    """Return a digest of all that predictions depend on: weights, architecture, precision, images and classes."""
    weights = {name: tensor.cpu() for name, tensor in classifier.network.state_dict().items()}
    return checksum(weights, json.dumps(_metadata(classifier)))


def _metadata(classifier: Classifier) -> dict[str, Any]:
    return {
        "model": classifier.settings.model_dump(),
        "images": asdict(classifier.spec),
        "precision": classifier.precision,
    }


def _load_file(path: Path, device: str) -> Classifier:
    try:
        weights, meta = load_tensors(path)
        spec = TypeAdapter(ImageSpec).validate_python(meta["images"])
        settings = build_config({"model": meta["model"]}, str(path)).model
        precision = str(meta["precision"])
    except (DamagedFile, OSError, ValidationError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as a model ({describe_error(error)}); give the model.safetensors of a run, its "
            "directory, or a checkpoint in it"
        ) from None
    return _build(settings, spec, weights, precision, device, str(path))


def _build(
    settings: NetworkSettings, spec: ImageSpec, weights: dict[str, Tensor], precision: str, device: str, source: str
) -> Classifier:
    network = build_network(settings, len(spec.classes), (spec.channels, spec.size, spec.size))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{source} does not match the config's network ({describe_error(error)})") from None
    try:
        network.to(device).to(memory_format=torch.channels_last)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch without CUDA
        raise UserError(f"device: {device!r} cannot be used ({single_line(error)}); use cpu or cuda") from None
    return Classifier(network, spec, settings, precision)


class PixelInput(nn.Module):
    """A classifier of pixels: maps images (n, size, size, channels) uint8 to logits (n, C)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and classify."""
        logits: Tensor = self.classifier(to_float(x))
        return logits


def export_onnx(classifier: Classifier, path: Path, uint8_input: bool = False) -> None:
    """Write the network as ONNX, with the inputs and outputs of ``Classifier.forward``, or of ``PixelInput``.

    The metadata of the file has ``classes`` (a JSON list), ``size``, ``channels``, ``mean``, ``std`` and ``fit``.

    Raises:
        UserError: if a package is missing, or the file cannot be written.
    """
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"ONNX export needs {name}; pip install onnx onnxscript")
    spec = classifier.spec
    device = next(classifier.parameters()).device
    example = torch.zeros(2, spec.channels, spec.size, spec.size, device=device)
    module: nn.Module = classifier
    if uint8_input:
        example, module = example.permute(0, 2, 3, 1).to(torch.uint8), PixelInput(classifier).eval()
    with warnings.catch_warnings(), redirect_stdout(None):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: torch.export.Dim("n")}},
        )
        assert program is not None
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in asdict(spec).items()}
        program.model.metadata_props.update(values)
    write_atomically(path, program.model_proto.SerializeToString())
