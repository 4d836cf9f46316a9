"""The typed configuration: schema, defaults, validation, and how files and key=value overrides become one.

The defaults are the paper's CIFAR-10 run with 250 labels; ``config.yml`` spells them out.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from mixmatch.errors import UserError

Count = Annotated[int, Field(ge=1, le=2**53)]
CountOrZero = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Alpha = Annotated[float, Field(ge=1e-3, le=1e3)]


class Section(BaseModel):
    """A group of keys. Unknown keys and values of another type are errors; nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(Section):
    """Which images, and how many of them are labelled."""

    dataset: Literal["cifar10", "digits", "folder"] = Field(
        "cifar10", description="cifar10 (downloaded), digits (bundled, 8x8) or folder (your own images)"
    )
    root: str = Field(
        "data", description="where CIFAR-10 is or goes; for folder, holds train/<class>/, test/<class>/, unlabeled/"
    )
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = Field(
        None, description="for folder: images become squares of so many pixels; null: 32"
    )
    num_labeled: Count | Literal["all"] = Field(
        250, description="labelled images, equally many of each class, or all that train/ has"
    )
    num_validation: CountOrZero = Field(
        0, description="images held out to watch and to pick the best checkpoint by, equally many of each class"
    )
    labeled_as_unlabeled: bool = Field(True, description="labelled images also serve, without label, as unlabelled")
    split_file: str | None = Field(
        None, description="a split.json to use instead of drawing a split from the seed and the counts above"
    )
    flip: bool | Literal["auto"] = Field(
        "auto", description="mirror half of the views; auto: as the data set allows (not digits)"
    )
    crop_padding: CountOrZero | Literal["auto"] = Field(
        "auto", description="pixels of reflection around an image before the crop; auto: an eighth of its side"
    )


class Model(Section):
    """The Wide ResNet."""

    depth: int = Field(28, description="6n + 4: 10, 16, 22, 28, ...")
    width: Annotated[float, Field(gt=0, le=64)] = Field(
        2, description="widening factor: 16, 32 and 64 times so many channels"
    )

    bn_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.001, description="share of a batch in BatchNorm's running statistics; short runs need more"
    )

    @field_validator("depth")
    @classmethod
    def _six_n_plus_four(cls, depth: int) -> int:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError("must be 6n + 4: 10, 16, 22, 28, ...")
        return depth

    @field_validator("width")
    @classmethod
    def _whole_channels(cls, width: float) -> float:
        if not float(16 * width).is_integer():
            raise ValueError("16 times it must be a whole number of channels")
        return width


class MixMatch(Section):
    """The method's own settings, named as in the paper."""

    num_views: Annotated[int, Field(ge=1, le=64)] = Field(2, description="K, augmented views per unlabelled image")
    temperature: Annotated[float, Field(ge=0.01, le=100)] = Field(0.5, description="T of sharpening; 1: no sharpening")
    alpha: Alpha = Field(0.75, description="MixUp draws lambda from Beta(alpha, alpha)")
    lambda_u: NonNegative = Field(75, description="weight of the unlabelled loss after the ramp-up")
    ramp_up_steps: CountOrZero = Field(16000, description="steps over which lambda_u rises linearly from 0")
    mixup: Literal["joint", "labeled", "unlabeled", "separate", "none"] = Field(
        "joint",
        description="what is mixed: joint (all), labeled alone, unlabeled alone, separate (each by itself) or none",
    )
    guess_with_ema: bool = Field(False, description="guess labels with the EMA weights instead of the current ones")


class Supervised(Section):
    """The baseline's own setting."""

    alpha: Alpha | Literal[0] = Field(
        0, description="MixUp between labelled images with Beta(alpha, alpha); 0: no MixUp"
    )


class PseudoLabel(Section):
    """A round on a trained run: confident predictions become labels, and training goes on."""

    enabled: bool = Field(
        False, description="after training, do a round of pseudo-labels on the run, in a folder beside it"
    )
    select: Literal["none", "threshold", "top", "balanced"] = Field(
        "threshold",
        description="threshold: confidence at least so much; top: the most confident of each predicted class; "
        "balanced: the same after the classes are brought to their labelled shares; none: the control",
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="of select=threshold")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="of each class, for select=top and balanced")
    strong_augmentation: bool = Field(
        False, description="train on pseudo-labelled images strongly distorted: RandAugment and Cutout in kind"
    )
    steps: Count = Field(65536, description="steps of the round, after those of the run")
    refresh_every: Count | None = Field(
        None, description="steps after which to select anew from all unlabelled images; null: select once"
    )


class Train(Section):
    """Length, optimiser and rhythm of a run."""

    steps: Count = Field(1048576, description="training steps; the paper's 2^26 images in batches of 64")
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = Field(
        64, description="B, labelled and as many unlabelled images a step"
    )
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam, or sgd with momentum and step decay")
    lr: Positive = Field(0.002, description="learning rate")
    weight_decay: NonNegative = Field(
        0.02, description="after each step convolution and dense kernels shrink by lr times this; nothing else does"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of sgd")
    nesterov: bool = Field(True, description="of sgd")
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
        "auto", description="of convolutions and the dense layer; auto: bfloat16 on GPUs that have it"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the network, and on a GPU record the whole step; auto: on a GPU"
    )
    log_every: Count = Field(64, description="steps between points on the TensorBoard curves")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Train":
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("train.nesterov needs train.momentum above 0")
        return self


class Config(Section):
    """Everything that makes a run what it is."""

    name: str | None = Field(
        None, description="the run goes to runs/<name>-seed<seed>; null: named after data set and labels"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="of the split, the weights and every draw")
    device: str = Field("auto", description="auto (the GPU if there is one), cpu, cuda or cuda:N")
    method: Literal["mixmatch", "supervised"] = Field(
        "mixmatch", description="mixmatch, or supervised for the baseline on the labelled images alone"
    )
    data: Data = Data()
    model: Model = Model()
    mixmatch: MixMatch = MixMatch()
    supervised: Supervised = Supervised()
    train: Train = Train()
    pseudo_label: PseudoLabel = PseudoLabel()

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("must be up to 100 letters, digits, '.', '_' and '-', starting with a letter or digit")
        return name

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return device

    def run_name(self) -> str:
        """Return the name of the run's folder under ``runs/``."""
        name = self.name
        if name is None:
            baseline = "-supervised" if self.method == "supervised" else ""
            name = f"{self.data.dataset}-{self.data.num_labeled}{baseline}"
        return f"{name}-seed{self.seed}"


def list_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that holds a value, dotted, with its field: ``("train.lr", FieldInfo)``."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from list_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, lay ``key=value`` overrides over it, and validate.

    Args:
        path: a YAML file that says what differs from the defaults; None for the defaults alone.
        overrides: such as ``train.lr=0.03``; the value is read as YAML.

    Raises:
        UserError: in one line, if the file cannot be read or any key or value is not allowed.
    """
    values = {} if path is None else read_yaml(path)
    source = str(path) if path is not None and not overrides else "config"
    return _validate(_lay_over(values, overrides), source)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of ``key: value`` lines; an empty one holds none.

    Raises:
        UserError: in one line, if it cannot be read or holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; a YAML file is needed") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; a YAML file is needed") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict | None):
        raise UserError(f"{path}: must hold 'key: value' lines, got {_brief(values)}")
    return values or {}


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Lay ``key=value`` overrides over a config, and validate.

    Raises:
        UserError: in one line, if any key or value is not allowed.
    """
    return _validate(_lay_over(config.model_dump(), overrides), "config")


def _lay_over(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"{text!r}: not understood; overrides look like train.lr=0.03")
        *sections, last = key.split(".")
        target = values
        for i, section in enumerate(sections):
            if target.get(section) is None:
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UserError(f"{'.'.join(sections[: i + 1])}: must be a section, got {_brief(target)}")
        target[last] = _parse(value, _brief(text))
    return values


def _validate(values: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error, Config)}") from None


def to_yaml(config: Config) -> str:
    """Return every key with its resolved value, as YAML that ``load_config`` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def differing_keys(a: Config, b: Config) -> list[str]:
    """Return, as ``key (value in a, value in b)``, the keys in which two configs describe different runs.

    ``device`` and ``data.root`` are left out: a run may go on elsewhere, and its split knows the images. So is
    ``pseudo_label``, which matters to rounds alone, see ``differing_keys_of_rounds``.
    """
    keys = [key for key, _ in list_keys() if key not in ("device", "data.root")]
    return _differing(a, b, [key for key in keys if not key.startswith("pseudo_label.")])


def differing_keys_of_rounds(a: Config, b: Config) -> list[str]:
    """Return in the same way the keys of ``pseudo_label`` in which two configs describe different rounds."""
    return _differing(a, b, [f"pseudo_label.{name}" for name in PseudoLabel.model_fields if name != "enabled"])


def _differing(a: Config, b: Config, keys: list[str]) -> list[str]:
    values = ((key, _value(a, key), _value(b, key)) for key in keys)
    return [f"{key} ({_brief(x)} there, {_brief(y)} now)" for key, x, y in values if x != y]


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with 1e-3 read as a number (YAML 1.2), and without aliases and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, f"aliases (*{event.anchor}) are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(None, None, f"a key must be text, got {_brief(key)}", node.start_mark)
            if key in keys[:i]:
                raise yaml.MarkedYAMLError(None, None, f"key {_brief(key)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, source: str) -> Any:
    """Read YAML into plain dicts, lists and scalars; UserError in one line if it is none."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}:{where} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None


def explain(error: ValidationError, schema: type[Section]) -> str:
    """Say in one line what is wrong with the first key that is, and with how many more."""
    keys = dict(list_keys(schema))
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    problems: dict[str, tuple[Any, list[str]]] = {}
    for item in error.errors(include_url=False):
        # A union's location ends in the name of the member that was tried: cut back to the key itself.
        location = [str(part) for part in item["loc"]]
        key = ".".join(location)
        while location and item["type"] != "extra_forbidden" and key not in keys and key not in sections:
            location.pop()
            key = ".".join(location)
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6) or [
                k for k in keys if k.rpartition(".")[2] == location[-1]
            ]
            everything = "main.py --help lists the keys" if schema is Config else f"there are {', '.join(keys)}"
            hint = f"; did you mean {close[0]}?" if close else f"; {everything}"
            allowed = f"unknown key{hint}"
        elif item["type"] == "model_type":
            allowed = f"must be a section with keys such as {next(k for k in keys if k.startswith(key + '.'))}"
        else:
            allowed = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        problems.setdefault(key, (item["input"], []))[1].append(allowed)
    (key, (given, allowed)), *more = problems.items()
    parts = [key] if key else []
    unique = list(dict.fromkeys(allowed))
    text = unique[0] + "".join(" or" + part.removeprefix("must be") for part in unique[1:])
    parts.append(text if "unknown key" in text or not key else f"{text}, got {_brief(given)}")
    rest = f" (and {len(more)} more: {', '.join(k for k, _ in more[:3])})" if more else ""
    return ": ".join(parts) + rest


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
