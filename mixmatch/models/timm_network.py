"""Networks of timm (PyTorch Image Models), with the weights that others have trained.

https://huggingface.co/docs/timm. timm is imported when a network of it is asked for.
"""

import difflib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixmatch.errors import UserError, single_line
from mixmatch.models.base import ImageShape, Network, NetworkSettings
from mixmatch.models.batch_norm import BatchNorm
from mixmatch.settings import PathText

_global_generator = threading.RLock()  # timm samples initial weights with PyTorch's global generator


class TimmSettings(NetworkSettings):
    """The ``model`` section of a network of timm."""

    architecture: str = Field(
        "resnet50",
        description="of timm: a network, such as convnext_tiny.in12k_ft_in1k; what follows the point names its weights",
    )
    pretrained: bool = Field(True, description="of timm: start from the weights that timm downloads")
    weights: PathText | None = Field(
        None, description="of timm: start from this file of weights instead of a download: .safetensors or .pth"
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0, description="of timm: rate of stochastic depth in the last block, lower in those before it"
    )

    @field_validator("architecture")
    @classmethod
    def _exists(cls, architecture: str) -> str:
        timm = import_timm()
        name, _, tag = architecture.partition(".")
        if not timm.is_model(name) or timm.get_pretrained_cfg(name) is None:  # those of deprecated names have none
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ValueError(
                "is not a classifier of timm; "
                + (f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them")
            )
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        if tag and tag not in tags:
            raise ValueError(f"unknown weights; choose one of {', '.join(tags) or 'none'}")
        return architecture

    def display_name(self) -> str:
        """Return the name of the architecture."""
        return self.architecture

    def default_image_size(self) -> int | None:
        """Return the side of the images that the weights were trained on."""
        return int(_pretrained_config(self.architecture).input_size[-1])

    def beyond_shapes(self) -> list[object]:
        """Return the architecture, on which padding depends, and the input's scale, which differs between weights."""
        config = _pretrained_config(self.architecture)
        return [self.architecture.partition(".")[0], config.mean, config.std]


def import_timm() -> Any:  # noqa: ANN401 - a module without types
    """Import timm.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UserError(
            'model.network: timm is not installed; pip install timm, or ".[timm]" of this project'
        ) from None
    return timm


def _pretrained_config(architecture: str) -> Any:  # noqa: ANN401 - timm's
    return import_timm().get_pretrained_cfg(architecture)


@dataclass
class ForwardPass:
    """What the layers of a network share about the current forward pass.

    Attributes:
        num_batches, update_statistics: see ``Network.embed``.
        uniform: (number of ``StochasticDepth`` layers, n), random in [0, 1); None: all paths are kept.
    """

    num_batches: int = 1
    update_statistics: bool = True
    uniform: Tensor | None = None


class ConvertedBatchNorm(BatchNorm):
    """Replaces a batch normalization of PyTorch or timm, with what timm may put after it: dropout and activation."""

    def __init__(self, original: _BatchNorm, momentum: float, forward_pass: ForwardPass) -> None:
        super().__init__(original.num_features, momentum, original.eps)
        self.forward_pass = forward_pass
        self.load_state_dict(_without_counters(original.state_dict()), assign=True)
        self.drop = getattr(original, "drop", nn.Identity())
        self.act = getattr(original, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the caller is timm's code
        """Normalize the batches in ``x``, (n, channels, ...)."""
        x = super().forward(x, self.forward_pass.num_batches, self.forward_pass.update_statistics)
        activated: Tensor = self.act(self.drop(x))
        return activated


class StochasticDepth(nn.Module):
    """Replaces timm's ``DropPath``: in training, drop a residual branch for some of the images.

    Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382.
    """

    def __init__(self, rate: float, number: int, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.rate, self.number, self.forward_pass = rate, number, forward_pass

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, ...) to (n, ...), zero with probability ``rate``, otherwise divided by 1 - ``rate``."""
        uniform = self.forward_pass.uniform
        if uniform is None:
            return x
        kept = (uniform[self.number] >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * kept.view(-1, *[1] * (x.dim() - 1))


class TimmNetwork(Network):
    """A network of the library timm, pretrained or not: model.architecture names it.

    Its input is scaled as its weights expect. Dropout is off; ``model.drop_path`` regularizes instead.
    """

    settings_type = TimmSettings
    offset: Tensor
    scale: Tensor

    def __init__(self, settings: TimmSettings, num_classes: int, shape: ImageShape) -> None:
        """Create the layers. Arguments as for ``Network``.

        Raises:
            UserError: if the architecture takes no images of this shape.
        """
        super().__init__(settings, num_classes, shape)
        self.settings, self.shape = settings, shape
        config = _pretrained_config(settings.architecture)
        # x in [-1, 1] becomes (pixel - mean) / std, pixels in [0, 1].
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        if shape[0] != len(mean):
            mean, std = mean.mean().expand(shape[0]), std.mean().expand(shape[0])
        self.register_buffer("scale", (0.5 / std).view(-1, 1, 1), persistent=False)
        self.register_buffer("offset", ((0.5 - mean) / std).view(-1, 1, 1), persistent=False)
        try:
            with torch.device("meta"):
                features = self._create().eval()(torch.empty(2, *shape))
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - each architecture checks sizes in its own way
            images = f"{'gray ' if shape[0] == 1 else ''}images of {shape[1]} pixels"
            raise UserError(
                f"data.image_size: {settings.architecture} does not take {images} ({single_line(error)}); it was "
                f"trained with {settings.default_image_size()}"
            ) from None
        if not isinstance(features, Tensor) or features.dim() != 2:
            raise UserError(f"model.architecture: {settings.architecture} returns no features of an image; use another")
        self.backbone = self._create()
        self.forward_pass = ForwardPass()
        self.num_paths = convert_layers(self.backbone, settings, self.forward_pass)
        # Compiled code takes no generators. This takes seconds to import, so it is no decorator.
        self.sample_uniform = torch.compiler.disable(sample_uniform) if self.num_paths else sample_uniform
        self.dense = nn.Linear(features.shape[1], num_classes)

    def _create(self, **arguments: Any) -> nn.Module:  # noqa: ANN401 - timm's
        """Return timm's network, without a last layer by default; random weights come from the global generator."""
        settings, size = self.settings, self.shape[1]
        arguments = {"num_classes": 0, "in_chans": self.shape[0]} | arguments
        if settings.drop_path:
            arguments["drop_path_rate"] = settings.drop_path
        create = import_timm().create_model
        with _preserved_global_generator():
            try:
                try:
                    # Networks with position embeddings are made for a size, others do not know this argument.
                    network: nn.Module = create(settings.architecture, img_size=size, **arguments)
                except TypeError as error:
                    if "img_size" not in str(error):
                        raise
                    network = create(settings.architecture, **arguments)
            except TypeError as error:
                if "drop_path_rate" not in str(error):
                    raise
                raise UserError(
                    f"model.drop_path: {settings.architecture} does not support stochastic depth; use model.drop_path=0"
                ) from None
        return network

    def initialize(self, generator: Generator) -> None:
        """Sample the weights: those of the last layer as ours, the others as timm does."""
        nn.init.xavier_normal_(self.dense.weight, generator=generator)
        nn.init.zeros_(self.dense.bias)
        with _preserved_global_generator():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            backbone = self._create()
        self.backbone.load_state_dict(_without_counters(backbone.state_dict()))

    def read_pretrained(self) -> dict[str, Tensor]:
        """Return the weights of the file, or of timm's download; the last layer's only if the file's fits.

        Position embeddings and the first convolution are adapted to the size and channels of the images.

        Raises:
            UserError: if they cannot be read or downloaded, or are of another architecture.
        """
        settings = self.settings
        if settings.weights is not None:
            network = self._read_file(Path(settings.weights))
        elif settings.pretrained:
            network = self._download()
        else:
            return {}
        weights = network.state_dict()
        read = {f"backbone.{name}": weights[name] for name in self.backbone.state_dict()}
        last = network.get_classifier() if hasattr(network, "get_classifier") else None
        if (
            settings.weights is not None
            and isinstance(last, nn.Linear)
            and last.weight.shape == self.dense.weight.shape
        ):
            read |= {f"dense.{name}": value for name, value in last.state_dict().items()}
        return read

    def _read_file(self, file: Path) -> Any:  # noqa: ANN401 - timm's networks
        """Return timm's network with the weights in a file, and with a last layer if there is one."""
        if not file.is_file():
            raise UserError(f"model.weights: {file}: no such file")
        architecture = self.settings.architecture
        last_layer = _pretrained_config(architecture).classifier  # several of a network with distillation
        try:
            from timm.models import load_state_dict

            name = last_layer if isinstance(last_layer, str) else next(iter(last_layer or [""]))
            weight = load_state_dict(str(file), weights_only=True).get(f"{name}.weight")
            # timm is told the number of classes, or it would accept any names of weights.
            classes = 0 if weight is None else len(weight)
            source = {"file": str(file), "num_classes": classes, "custom_load": False, "source": ""}
            return self._create(num_classes=classes, pretrained=True, pretrained_cfg_overlay=source)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - unpickling, safetensors and timm raise anything
            raise UserError(
                f"model.weights: {file} cannot be read as weights of {architecture} "
                f"({type(error).__name__}: {single_line(error)[:200]})"
            ) from None

    def _download(self) -> Any:  # noqa: ANN401 - timm's networks
        """Return timm's network with the weights of its hub, or of the hub's cache."""
        log = logging.getLogger("huggingface_hub")
        level = log.level
        log.setLevel(logging.ERROR)  # it prints a line for each try
        architecture = self.settings.architecture
        try:
            return self._create(num_classes=_pretrained_config(architecture).num_classes, pretrained=True)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - network errors of several libraries
            raise UserError(
                f"model.pretrained: the weights of {architecture} cannot be downloaded "
                f"({type(error).__name__}: {single_line(error)[:200]}); set model.weights to a file of them, or "
                "use another model.network, which starts from random weights"
            ) from None
        finally:
            log.setLevel(level)

    def layer_depths(self) -> dict[str, int]:
        """Return for each parameter the number of its layer, counted as timm does."""
        from timm.models import group_parameters

        backbone: Any = self.backbone
        if not hasattr(backbone, "group_matcher"):
            return super().layer_depths()
        names = {name.removeprefix("backbone."): name for name, _ in self.named_parameters()}
        as_in_timm: Any = SimpleNamespace(named_parameters=lambda: names.items())
        depths: dict[str, int] = group_parameters(as_in_timm, backbone.group_matcher(coarse=False), reverse=True)
        return {names[name]: depth for name, depth in depths.items()}

    def has_weight_decay(self, name: str) -> bool:
        """Return whether weight decay applies to a parameter: not to those that timm excludes, such as positions."""
        backbone: Any = self.backbone
        excluded = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
        return super().has_weight_decay(name) and not any(
            fnmatchcase(name.removeprefix("backbone."), pattern) for pattern in excluded
        )

    def embed(self, x: Tensor, num_batches: int = 1, update_statistics: bool = True) -> Tensor:
        """Return features, see ``Network.embed``. Without gradient no path is dropped: labels are guessed by all."""
        current = self.forward_pass
        if self.training:
            current.num_batches, current.update_statistics, current.uniform = num_batches, update_statistics, None
            if self.num_paths and torch.is_grad_enabled() and not self.frozen:
                current.uniform = self.sample_uniform(self.num_paths, len(x), x.device, self.generator)
        features: Tensor = self.backbone(x * self.scale + self.offset)
        current.uniform = None
        return features


def sample_uniform(rows: int, columns: int, device: torch.device, generator: Generator | None) -> Tensor:
    """Return (rows, columns) random numbers in [0, 1)."""
    return torch.rand(rows, columns, device=device, generator=generator)


def convert_layers(network: nn.Module, settings: TimmSettings, forward_pass: ForwardPass) -> int:
    """Replace the layers of timm that depend on batches or random numbers by ours, and turn dropout off.

    Without ``settings.drop_path`` no path is dropped, whatever timm's default for the architecture.

    Returns:
        The number of layers that may drop paths.

    Raises:
        UserError: if a layer cannot be replaced.
    """
    from timm.layers.drop import DropPath

    num_paths = 0
    for name, module in list(network.named_modules()):
        replacement: nn.Module
        if isinstance(module, _BatchNorm):
            if not module.affine or not module.track_running_stats:
                raise UserError(f"model.architecture: its {name} is a BatchNorm without weights or statistics")
            replacement = ConvertedBatchNorm(module, settings.bn_momentum, forward_pass)
        elif isinstance(module, DropPath):
            replacement = nn.Identity()
            if settings.drop_path and module.drop_prob:
                replacement = StochasticDepth(module.drop_prob, num_paths, forward_pass)
                num_paths += 1
        else:
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            if isinstance(getattr(module, "drop_rate", None), float):
                module.drop_rate = 0.0  # some networks call the function
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, replacement)
    return num_paths


def _without_counters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


@contextmanager
def _preserved_global_generator() -> Iterator[None]:
    """Restore PyTorch's global generator afterwards; other threads of this project wait."""
    with _global_generator, torch.random.fork_rng(devices=[]):
        yield
