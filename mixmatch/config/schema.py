"""The schema of the configuration: its sections, and ``Config``, which gathers them.

Methods, networks and data sets bring their own keys. The defaults are the paper's CIFAR-10 run with 250 labels;
``config.yml`` lists them.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, create_model, model_validator

from mixmatch.data import DATASETS, DataSettings
from mixmatch.errors import UserError, describe_error
from mixmatch.methods import METHODS, Method
from mixmatch.models import MODELS, NetworkSettings
from mixmatch.settings import Count, CountOrZero, NonNegative, PathText, Positive, Settings, short_repr


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError("must be up to 100 letters, digits, '.', '_' and '-', starting with a letter or digit")
    return name


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return device


Name = Annotated[str, AfterValidator(_check_name)]


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(", ".join(map(repr, names)).rsplit(", ", 1))


class TrainSettings(Settings):
    """Length, optimizer, execution and logging of a run."""

    steps: Count = Field(1048576, description="training steps; default: the paper's 2^26 images in batches of 64")
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = Field(
        64, description="B, labeled images per step; the method sets the number of unlabeled images, B in MixMatch"
    )
    balanced_sampling: bool = Field(
        False, description="take labeled images of each class equally often, also where classes have unequal numbers"
    )
    optimizer: Literal["adam", "sgd", "muon"] = Field(
        "adam",
        description="adam (with decoupled weight decay, as AdamW, but after its update, as the authors), sgd (with "
        "momentum and step decay) or muon (for convolutions, whose weights keep their norm; adam for the rest)",
    )
    lr: Positive = Field(0.002, description="learning rate")
    head_lr: Positive | None = Field(None, description="learning rate of the last layer; null: lr")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1, description="factor of lr from each layer to the one before it, for fine-tuning; networks of timm have many"
    )
    warmup_steps: CountOrZero = Field(
        0, description="steps over which the learning rates rise linearly from 0, also after model.freeze_steps"
    )
    muon_lr: Positive = Field(0.1, description="muon: learning rate of the convolutions")
    lr_schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="constant, cosine (FixMatch's, decays to a fifth) or linear (decays to 0)"
    )
    weight_decay: NonNegative = Field(
        0.02, description="decoupled weight decay, scaled by lr, of parameters of two and more dimensions"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="sgd and muon: momentum")
    nesterov: bool = Field(True, description="sgd: Nesterov momentum; muon always uses it")
    lr_decay_steps: list[Count] = Field([], description="sgd: steps at which lr is multiplied by lr_decay_factor")
    lr_decay_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="sgd: see lr_decay_steps")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="decay of the EMA weights, which every evaluation uses; 0: no EMA"
    )
    eval_every: Count = Field(1024, description="steps between evaluations")
    patience: Count | None = Field(
        None,
        description="evaluations without a better validation accuracy after which the run ends; null: run all steps",
    )
    checkpoint_every: Count = Field(1024, description="steps between checkpoints")
    keep_checkpoints: Count | Literal["all"] = Field(
        2,
        description="newest checkpoints that are kept, in addition to the best by validation accuracy; all: every one",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of convolutions and linear layers; auto: bfloat16 where it is faster, fixed per run"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the step with torch.compile; auto: on a GPU, if the run is long enough"
    )
    cuda_graph: bool | Literal["auto"] = Field("auto", description="execute the step as a CUDA graph; auto: on a GPU")
    log_every: Count = Field(64, description="steps between points of the TensorBoard curves")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "TrainSettings":
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set train.nesterov=false")
        return self


class PseudoLabelSettings(Settings):
    """A stage that trains a run on: with its confident predictions as labels, or by another method."""

    enabled: bool = Field(
        False, description="after training, run a pseudo-label stage on the run, in a directory next to it"
    )
    select: Literal["none", "threshold", "top"] = Field(
        "threshold",
        description="predictions that become labels: threshold (the confident ones), top (the most confident of each "
        "predicted class) or none (the control)",
    )
    method: str | None = Field(
        None,
        description="train the stage with this method instead, without fixed labels; select, threshold, fraction and "
        "refresh_every then have no effect",
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="minimum confidence for select=threshold")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="fraction of each class for select=top")
    steps: Count | None = Field(
        None, description="steps of the stage, after those of the run; null: as many again, up to 65,536"
    )
    refresh_every: Count | None = Field(
        None, description="steps between selections, each among all unlabeled images; null: select once"
    )
    lr_schedule: Literal["constant", "cosine", "linear"] | None = Field(
        None, description="train.lr_schedule of the stage, over its own steps; null: that of the run"
    )
    name: Name | None = Field(None, description="the stage goes to <run>-<name>; null: named after select or method")


class Config(Settings):
    """The configuration of a run. ``load_config`` and ``build_config`` make one.

    Besides these fields it has a section for each method in ``METHODS``, with the method's name; ``data`` and
    ``model`` are the settings of the chosen data set and network.
    """

    name: Name | None = Field(
        None,
        description="the run directory is runs/<name>[-<method>]-seed<seed>; null: named after the data",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        1, description="of the split, the initial weights, the batches and the augmentation"
    )
    device: Annotated[str, AfterValidator(_check_device)] = Field(
        "auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N"
    )
    method: str = Field(
        "mixmatch",
        description="mixmatch, remixmatch, fixmatch, freematch, softmatch, or supervised (labeled images only)",
    )
    init_from: PathText | None = Field(
        None,
        description="run directory, checkpoint file of a run, or model.safetensors, whose EMA weights initialize the "
        "network, instead of pretrained ones",
    )
    data: DataSettings = DataSettings()
    model: NetworkSettings = NetworkSettings()
    train: TrainSettings = TrainSettings()
    pseudo_label: PseudoLabelSettings = PseudoLabelSettings()

    @property
    def method_settings(self) -> Settings:
        """The section of the chosen method."""
        settings: Settings = getattr(self, self.method)
        return settings

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values only; the class is created again from the registries."""
        return validate, (self.model_dump(),)

    def run_name(self, note: str = "") -> str:
        """Return the default name of the run directory, with a note on what is special about the run."""
        size = "" if self.data.image_size is None else f"-{self.data.image_size}px"
        name = (self.name or f"{self.data.display_name()}{size}-{self.data.num_labeled}") + note
        named = re.search(rf"(^|-){re.escape(self.method)}(-|$)", name)
        method = "" if self.method == "mixmatch" or named else f"-{self.method}"
        return f"{name}{method}-seed{self.seed}"


def validate(values: dict[str, Any]) -> Config:
    """Return the config with these values; raise pydantic's ValidationError, or what ``schema_for`` raises.

    Images get the size that the network was made for, unless ``values`` have another.
    """
    config = schema_for(values).model_validate(values)
    size = config.model.default_image_size()
    if config.data.image_size is None and size is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})
    return config


def schema_for(values: dict[str, Any]) -> type[Config]:
    """Return ``Config`` with the sections of the data set and network that ``values`` choose, and of all methods.

    Raises:
        UserError: if ``values`` name a method, data set or network that is not registered.
    """
    _choice(values, "method", METHODS)
    _choice(values.get("pseudo_label"), "pseudo_label.method", METHODS)
    dataset = _choice(values.get("data"), "data.dataset", DATASETS)
    network = _choice(values.get("model"), "model.network", MODELS)
    return _make_schema(
        dataset, DATASETS[dataset].settings_type, network, MODELS[network].settings_type, tuple(METHODS.items())
    )


def _choice(section: object, key: str, registry: Mapping[str, object]) -> str:
    """Return the name that a section chooses from a registry; the default if it chooses none or is not valid."""
    name = section.get(key.rpartition(".")[2]) if isinstance(section, dict) else None
    if not isinstance(name, str):
        return next(iter(registry))
    if name not in registry:
        raise UserError(f"{key}: must be {_one_of(registry)}, got {short_repr(name)}; --import FILE brings others")
    return name


@cache
def _make_schema(
    dataset: str,
    data: type[DataSettings],
    network: str,
    model: type[NetworkSettings],
    methods: tuple[tuple[str, type[Method[Any]]], ...],
) -> type[Config]:
    for name, method in methods:
        if hasattr(Config, name) or name in Config.model_fields or not name.isidentifier():
            raise UserError(f"METHODS[{name!r}]: the name is reserved or not an identifier; choose another")
        if not (isinstance(method, type) and issubclass(method, Method) and hasattr(method, "settings_type")):
            raise UserError(f"METHODS[{name!r}]: must be a subclass of Method with a settings_type, got {method!r}")
    try:
        sections: dict[str, Settings] = {"data": data(dataset=dataset), "model": model(network=network)}
        sections |= {name: method.settings_type() for name, method in methods}
    except ValidationError as error:
        raise UserError(f"{error.title}: every key needs a default: {describe_error(error)}") from None
    fields: dict[str, Any] = {name: (type(section), section) for name, section in sections.items()}
    return create_model("Config", __base__=Config, **fields)
