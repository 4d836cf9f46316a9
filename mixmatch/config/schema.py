"""The configuration of a run: its schema, and how files and key=value overrides become one.

Methods, networks and data sets bring their own keys; the schema is gathered from them. The defaults are the paper's
CIFAR-10 run with 250 labels; ``config.yml`` spells them out.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, create_model, field_validator, model_validator
from pydantic.fields import FieldInfo

from mixmatch.config.strict_yaml import parse_yaml, read_yaml
from mixmatch.data import DATASETS, DataSettings
from mixmatch.errors import UserError
from mixmatch.methods import METHODS, Method
from mixmatch.models import MODELS, NetworkSettings
from mixmatch.settings import Count, NonNegative, Positive, Settings, brief, explain, list_keys

# Keys that may change on a run under way: it may go on elsewhere and be computed in other ways, its split knows the
# images, and its checkpoints the precision, see ``training.prepare``.
RESUMABLE_KEYS = ("device", "data.root", "train.precision", "train.compile", "train.cuda_graph")
DEEPEST = 8  # sections in sections that a key can be in
# How often a run is looked at: it may change on a run under way, which keeps the newest.
INTERVAL_KEYS = ("train.eval_every", "train.checkpoint_every", "train.log_every")


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(", ".join(map(repr, names)).rsplit(", ", 1))


def _fit_for_a_folder(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError("must be up to 100 letters, digits, '.', '_' and '-', starting with a letter or digit")
    return name


Name = Annotated[str, AfterValidator(_fit_for_a_folder)]


class TrainSettings(Settings):
    """Length, optimizer and rhythm of a run."""

    steps: Count = Field(1048576, description="training steps; the paper's 2^26 images in batches of 64")
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = Field(
        64, description="B, labeled images a step, and as many unlabeled ones, or as the method says"
    )
    optimizer: Literal["adam", "sgd", "muon"] = Field(
        "adam", description="adam, sgd with momentum and step decay, or muon: Muon for convolutions, adam for the rest"
    )
    lr: Positive = Field(0.002, description="learning rate")
    muon_lr: Positive = Field(0.1, description="of muon: learning rate of convolutions")
    lr_schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="over the run: constant, cosine (FixMatch's, down to a fifth) or linear (to 0)"
    )
    weight_decay: NonNegative = Field(
        0.02, description="after each step convolution and dense kernels shrink by lr times this; nothing else does"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of sgd and muon")
    nesterov: bool = Field(True, description="of sgd; muon always looks ahead")
    lr_decay_steps: list[Count] = Field([], description="of sgd: steps at which lr is multiplied by lr_decay_factor")
    lr_decay_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="of sgd")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="of the averaged weights, which every reported accuracy uses; 0: no averaging"
    )
    eval_every: Count = Field(1024, description="steps between evaluations")
    checkpoint_every: Count = Field(
        1024, description="steps between checkpoints; a kill loses at most those since the last one written"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of convolutions and the dense layer; auto: bfloat16 where it is faster, kept by the run"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the step; auto: on a GPU, in runs long enough to gain by it"
    )
    cuda_graph: bool | Literal["auto"] = Field("auto", description="record the step as a CUDA graph; auto: on a GPU")
    log_every: Count = Field(64, description="steps between points on the TensorBoard curves")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "TrainSettings":
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("train.nesterov needs train.momentum above 0")
        return self


class PseudoLabelSettings(Settings):
    """A round on a trained run: confident predictions become labels, and training goes on."""

    enabled: bool = Field(
        False, description="after training, do a round of pseudo-labels on the run, in a folder beside it"
    )
    select: Literal["none", "threshold", "top", "balanced", "method"] = Field(
        "threshold",
        description="threshold: confidence at least so much; top: the most confident of each predicted class; "
        "balanced: the same after the classes are brought to their labeled shares; none: the control; "
        "method: no fixed labels, another method trains on",
    )
    method: str = Field("remixmatch", description="of select=method; it makes labels anew at every step")
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="of select=threshold")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="of each class, for select=top and balanced")
    strong_augmentation: bool = Field(
        False, description="train on pseudo-labeled images strongly distorted: RandAugment and Cutout"
    )
    steps: Count = Field(65536, description="steps of the round, after those of the run")
    refresh_every: Count | None = Field(
        None, description="steps after which to select anew from all unlabeled images; null: select once"
    )
    lr_schedule: Literal["constant", "cosine", "linear"] | None = Field(
        None, description="train.lr_schedule of the round, over its own steps; null: the run's"
    )
    name: Name | None = Field(None, description="the round goes to <run>-<name>; null: named after its rule")

    @model_validator(mode="after")
    def _a_method_selects_nothing(self) -> "PseudoLabelSettings":
        if self.select == "method":
            if self.method not in METHODS:
                raise ValueError(
                    f"pseudo_label.method: must be {_one_of(METHODS)}, got {brief(self.method)}; "
                    "--import FILE brings others"
                )
            for key in ("strong_augmentation", "refresh_every"):
                if getattr(self, key):
                    raise ValueError(f"pseudo_label.{key}: is of selected labels, of which select=method has none")
        return self


class Config(Settings):
    """Everything that makes a run what it is. Make one with ``load_config`` or ``build_config``.

    Beside these fields it has a section for each method in ``METHODS``, under the method's name; ``data`` and ``model``
    are those of the data set and the network that they name.
    """

    name: Name | None = Field(
        None,
        description="the run goes to runs/<name>-seed<seed>, with the method if it is another; null: after the data",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="of the split, the weights and every draw")
    device: str = Field("auto", description="auto (the GPU if there is one), cpu, cuda or cuda:N")
    method: str = Field(
        "mixmatch",
        description="mixmatch, remixmatch, fixmatch, freematch, softmatch, or supervised: the labeled images alone",
    )
    init_from: str | None = Field(
        None, description="a run, or a model.safetensors, whose averaged weights a new run starts from"
    )
    data: DataSettings = DataSettings()
    model: NetworkSettings = NetworkSettings()
    train: TrainSettings = TrainSettings()
    pseudo_label: PseudoLabelSettings = PseudoLabelSettings()

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return device

    @property
    def method_settings(self) -> Settings:
        """The section of the run's method."""
        return getattr(self, self.method)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values: the class is made anew, from the registries there."""
        return build_config, (self.model_dump(),)

    def run_name(self) -> str:
        """Return the name of the run's folder under ``runs/``."""
        name = self.name
        if name is None:
            size = "" if self.data.image_size is None else f"-{self.data.image_size}px"
            name = f"{self.data.title()}{size}-{self.data.num_labeled}"
        method = "" if self.method == "mixmatch" or self.method in name else f"-{self.method}"
        return f"{name}{method}-seed{self.seed}"


# What metrics call otherwise than the parts of a method's loss.
RESERVED = frozenset(
    {
        *("step", "steps", "loss", "lr", "steps_per_second", "validation_accuracy", "test_accuracy"),
        *(
            "confidence",
            "correct",
            "known",
            "guesses",
            "guess_accuracy",
            "max_class_frequency",
            "effective_num_classes",
        ),
    }
)
# What the config calls by name, and the registry that knows the names.
CHOICES: dict[str, dict[str, Any]] = {"method": METHODS, "data.dataset": DATASETS, "model.network": MODELS}


def schema_for(values: dict[str, Any]) -> type[Config]:
    """Return the schema of a config that chooses as ``values`` does; where that is no choice, the default is taken.

    Raises:
        UserError: if a name is chosen that no registry knows.
    """
    chosen = {}
    for key, registry in CHOICES.items():
        section, _, name = key.rpartition(".")
        place = values.get(section) if section else values
        given = place.get(name) if isinstance(place, dict) else None
        if isinstance(given, str) and given not in registry:
            raise UserError(f"{key}: must be {_one_of(registry)}, got {brief(given)}; --import FILE brings others")
        chosen[key] = given if isinstance(given, str) else next(iter(registry))
    return _schema(chosen["data.dataset"], chosen["model.network"])


def _schema(dataset: str, network: str) -> type[Config]:
    return _make_schema(
        dataset, DATASETS[dataset].settings_type, network, MODELS[network].settings_type, tuple(METHODS.items())
    )


@cache
def _make_schema(
    dataset: str, data: type[DataSettings], network: str, model: type[NetworkSettings], methods: tuple
) -> type[Config]:
    fields: dict[str, Any] = {"data": (data, data(dataset=dataset)), "model": (model, model(network=network))}
    for name, method in methods:
        if hasattr(Config, name) or name in Config.model_fields or not name.isidentifier():
            raise UserError(f"METHODS: {name!r} cannot be the name of a method; the config has that, or it is no word")
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise UserError(f"METHODS: {name}: must be a class made from Method, got {brief(method)}")
        reserved = {*method.parts} & RESERVED
        if reserved:
            raise UserError(
                f"METHODS: {name}: parts cannot be called {', '.join(reserved)}; metrics have these already"
            )
        fields[name] = (method.settings_type, defaults_of(method.settings_type))
    return create_model("Config", __base__=Config, **fields)


def defaults_of(settings: type[Settings]) -> Settings:
    """Return a section of defaults.

    Raises:
        UserError: if a key has none.
    """
    try:
        return settings()
    except ValidationError as error:
        raise UserError(f"{settings.__name__}: every key needs a default: {explain(error, settings)}") from None


def all_keys() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that a config can have, of whatever method, network or data set, in the order of config.yml."""
    seen = set()
    for dataset in DATASETS:
        for network in MODELS:
            schema = _schema(dataset, network)
            order = list(_in_order(dict(schema.model_fields)))
            for key, field in sorted(list_keys(schema), key=lambda pair: order.index(pair[0].partition(".")[0])):
                if (key, field.description) not in seen:
                    seen.add((key, field.description))
                    yield key, field


def _in_order(sections: dict[str, Any]) -> dict[str, Any]:
    """Put the sections of methods where config.yml has them: after the model."""
    first = [name for name in Config.model_fields if name not in ("train", "pseudo_label")]
    order = [*first, *(name for name in sections if name not in Config.model_fields), "train", "pseudo_label"]
    return {name: sections[name] for name in order if name in sections}


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, lay ``key=value`` overrides over it, and validate.

    Args:
        path: a YAML file that says what differs from the defaults; None for the defaults alone.
        overrides: such as ``train.lr=0.03``; the value is read as YAML.

    Raises:
        UserError: in one line, if the file cannot be read or any key or value is not allowed.
    """
    values = {} if path is None else read_yaml(Path(path))
    source = str(path) if path is not None and not overrides else "config"
    return build_config(_lay_over(values, overrides), source)


def build_config(values: dict[str, Any], source: str = "config") -> Config:
    """Make a config of what differs from the defaults: ``{"seed": 2, "train": {"steps": 1000}}``.

    Args:
        values: sections and keys, as in a config file.
        source: how to name it in an error.

    Raises:
        UserError: in one line, if any key or value is not allowed.
    """
    try:
        if not isinstance(values, dict):
            raise UserError(f"must be a dict of sections and keys, got {brief(values)}")
        schema = schema_for(values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(
            f"{source}: {explain(error, schema, 'main.py --help lists the keys, --import FILE brings others')}"
        ) from None


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Lay ``key=value`` overrides over a config, and validate.

    Raises:
        UserError: in one line, if any key or value is not allowed.
    """
    return build_config(_lay_over(config.model_dump(), overrides))


def _lay_over(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    pairs = []
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"{text!r}: not understood; overrides look like train.lr=0.03")
        if key.count(".") > DEEPEST:
            raise UserError(f"{brief(key)}: unknown key; main.py --help lists the keys")
        pairs.append((key, parse_yaml(value, brief(text))))
    _drop_keys_of_former_choices(values, dict(pairs))
    for key, value in pairs:
        *sections, last = key.split(".")
        target = values
        for i, section in enumerate(sections):
            if target.get(section) is None:
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UserError(f"{'.'.join(sections[: i + 1])}: must be a section, got {brief(target)}")
        target[last] = value
    return values


def _drop_keys_of_former_choices(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Where an override chooses another network or data set, take out the keys that are the former one's own."""
    for section, name, common in (("data", "dataset", DataSettings), ("model", "network", NetworkSettings)):
        registry = CHOICES[f"{section}.{name}"]
        chosen, keys = overrides.get(f"{section}.{name}"), values.get(section)
        if not isinstance(keys, dict) or not isinstance(chosen, str) or chosen not in registry:
            continue
        before = keys.get(name) or next(iter(registry))
        if before in registry and before != chosen:
            only = registry[before].settings_type.model_fields.keys() - common.model_fields.keys()
            values[section] = {key: value for key, value in keys.items() if key not in only}


def to_yaml(config: Config) -> str:
    """Return every key with its value, as YAML that ``load_config`` reads back to the same config.

    Only the section of a method that the run does not use is left out, if it holds defaults alone: a run can then be
    opened where that method is not known.
    """
    values = config.model_dump()
    for name, method in METHODS.items():
        if name != config.method and getattr(config, name) == method.settings_type():
            del values[name]
    return yaml.safe_dump(_in_order(values), sort_keys=False)


def flat(config: Config) -> dict[str, Any]:
    """Return the keys of what a run uses, dotted, with their values."""
    used = {*Config.model_fields, config.method}
    keys = [key for key, _ in list_keys(type(config)) if key.partition(".")[0] in used]
    return {key: _value(config, key) for key in keys}


def continued(stored: Config, config: Config, reached: int) -> Config:
    """Return what a run's config becomes when it goes on as ``config`` asks: ``INTERVAL_KEYS`` and the length may be others.

    Args:
        stored: the run's.
        config: that is asked for.
        reached: the steps of its newest checkpoint; it cannot become shorter.

    Raises:
        UserError: naming the keys, if ``config`` is of another run.
    """
    differing = differing_keys(stored, config, ignoring=(*INTERVAL_KEYS, "train.steps"))
    another_length = config.train.steps != stored.train.steps
    method = METHODS[stored.method]
    fixed = method.depends_on_num_steps(stored.method_settings) or stored.train.lr_schedule != "constant"
    hint = ""
    if another_length and (differing or fixed or config.train.steps < reached):
        differing += _differing(stored, config, ["train.steps"])
        if fixed:
            hint = "; its schedules depend on its length: a new run with init_from=RUN starts from its weights"
        elif config.train.steps < reached:
            hint = f"; it is at step {reached} already"
    if differing:
        raise UserError(
            f"holds a run of another config: {', '.join(differing)}{hint}; "
            "use another run directory (--run-dir DIRECTORY, or name=NAME)"
        )
    changed = {key.removeprefix("train."): _value(config, key) for key in (*INTERVAL_KEYS, "train.steps")}
    return stored.model_copy(update={"train": stored.train.model_copy(update=changed)})


def differing_keys(a: Config, b: Config, ignoring: Sequence[str] = ()) -> list[str]:
    """Return, as ``key (value in a, value in b)``, the keys in which two configs describe different runs.

    ``RESUMABLE_KEYS`` and ``ignoring`` are left out, and so are the sections of methods that neither uses, and
    ``pseudo_label``, which matters to rounds alone, see ``differing_keys_of_rounds``.
    """
    keys = dict.fromkeys(key for config in (a, b) for key, _ in list_keys(type(config)))
    left_out = {*RESUMABLE_KEYS, *ignoring}
    unused = {*METHODS, "pseudo_label"} - {a.method, b.method}
    ours = [key for key in keys if key not in left_out and key.partition(".")[0] not in unused]
    return _differing(a, b, ours)


def differing_keys_of_rounds(a: Config, b: Config, before: str = "") -> list[str]:
    """Return in the same way the keys in which two configs describe different rounds.

    These are the keys of ``pseudo_label``, and of the section of its method if that trains the round; and then those of
    the method that trained the run ``before`` it, if that is known: they say which run the round goes on from.
    """
    keys = [f"pseudo_label.{name}" for name in PseudoLabelSettings.model_fields if name not in ("enabled", "name")]
    if a.pseudo_label.select == b.pseudo_label.select == "method" and a.pseudo_label.method == b.pseudo_label.method:
        name = a.pseudo_label.method
        methods = dict.fromkeys((name, before or name))
        keys += [f"{method}.{key}" for method in methods for key in METHODS[method].settings_type.model_fields]
    return _differing(a, b, keys)


def _differing(a: Config, b: Config, keys: list[str]) -> list[str]:
    values = ((key, _value(a, key), _value(b, key)) for key in keys)
    return [f"{key} ({brief(x)} there, {brief(y)} now)" for key, x, y in values if x != y]


def _value(config: Config, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value
