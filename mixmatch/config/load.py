"""Read a configuration: a YAML file, ``key=value`` overrides laid over it, validation; and write it back."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mixmatch.config.schema import Config, PseudoLabelSettings, TrainSettings, schema_for, validate
from mixmatch.config.strict_yaml import parse_yaml, read_yaml
from mixmatch.data import DATASETS, DataSettings
from mixmatch.errors import UserError, short_tracebacks
from mixmatch.methods import METHODS
from mixmatch.models import MODELS, NetworkSettings
from mixmatch.settings import Settings, describe_validation_error, list_keys, short_repr

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@short_tracebacks
def load_config(source: Path | str | Sequence[Path | str] | None, overrides: Sequence[str] = ()) -> Config:
    """Return the config in a YAML file, with overrides applied.

    Args:
        source: a YAML file with the keys that differ from the defaults, or the name of a config of this package, such
            as ``digits``; several, of which later ones are laid over earlier ones; None for the defaults.
        overrides: such as ``train.lr=0.03``; the value is YAML, or text as it is written if the key holds text.

    Raises:
        UserError: if the file cannot be read, or a key or value is invalid.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides: must be a list of key=value, got {short_repr(overrides)}")
    sources = [source] if isinstance(source, Path | str) else source or []
    values: dict[str, Any] = {}
    for each in sources:
        read = read_yaml(find_config(each), text_keys())
        sections = {key: value for key, value in read.items() if isinstance(value, dict)}
        leaves = {f"{key}.{name}": value for key, section in sections.items() for name, value in section.items()}
        _drop_keys_of_former_choices(values, leaves)
        merged = {k: {**values[k], **section} for k, section in sections.items() if isinstance(values.get(k), dict)}
        values |= read | merged
    _override(values, overrides)
    return build_config(values, "config" if len(sources) != 1 or overrides else str(sources[0]))


def find_config(source: Path | str) -> Path:
    """Return the file of a config.

    Args:
        source: a path, or a name from ``config_names``.

    Raises:
        UserError: if there is no such file.
    """
    path, packaged = Path(source), CONFIGS / f"{source}.yml"
    if packaged.is_file() and not path.is_file():
        return packaged
    if not path.exists():
        raise UserError(f"{path}: no such file; give a YAML file or one of {', '.join(config_names())}")
    return path


def config_names() -> list[str]:
    """Return the names of the configs of this package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yml"))


@short_tracebacks
def build_config(values: dict[str, Any], source: str = "config") -> Config:
    """Return the config with values that differ from the defaults: ``{"seed": 2, "train": {"steps": 1000}}``.

    Args:
        values: sections and keys, as in a config file.
        source: where they come from, for error messages.

    Raises:
        UserError: if a key or value is invalid.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: must be a dict of sections and keys, got {short_repr(values)}")
    try:
        return validate(values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        hint = "--help lists the keys, --import FILE brings others"
        raise UserError(f"{source}: {describe_validation_error(error, schema_for(values), hint)}") from None


@short_tracebacks
def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return the config with ``key=value`` overrides applied.

    Raises:
        UserError: if a key or value is invalid.
    """
    values = config.model_dump()
    _override(values, overrides)
    return build_config(values)


def _override(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set the values of ``key=value`` overrides in place."""
    parsed: dict[str, Any] = {}
    text = text_keys()
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not all(key.split(".")):
            raise UserError(f"{override}: not an override; write key=value, such as train.lr=0.03")
        may_be_null = text.get(key)
        if may_be_null is None:
            inner = [name.removeprefix(f"{key}.") for name in text if name.startswith(f"{key}.")]  # of a section
            parsed[key] = parse_yaml(value, short_repr(override), inner)
        elif not value:
            hint = " or null" if may_be_null else ""
            raise UserError(f"{key}: must not be empty; write {key}=VALUE{hint}")
        else:
            parsed[key] = None if may_be_null and value == "null" else value
    _drop_keys_of_former_choices(values, parsed)
    for key, value in parsed.items():
        *sections, name = key.split(".")
        target = values
        for depth, section in enumerate(sections, 1):
            if target.get(section) is None:
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UserError(f"{'.'.join(sections[:depth])}: must be a section, got {short_repr(target)}")
        target[name] = value


def _drop_keys_of_former_choices(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Where an override chooses another data set or network, remove the keys that only the former one has."""
    choices: list[tuple[str, str, Mapping[str, Any], type[Settings]]] = [
        ("data", "dataset", DATASETS, DataSettings),
        ("model", "network", MODELS, NetworkSettings),
    ]
    for section, choice, registry, common in choices:
        keys, chosen = values.get(section), overrides.get(f"{section}.{choice}")
        if isinstance(keys, dict) and chosen is not None:
            former = keys.get(choice) or next(iter(registry))
            if isinstance(former, str) and former in registry and former != chosen:
                own = registry[former].settings_type.model_fields.keys() - common.model_fields.keys()
                if former == "folder":
                    own |= {"root"}  # of the photographs
                values[section] = {key: value for key, value in keys.items() if key not in own}


def all_keys() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of any method, network and data set, with its field, in the order of config.yml.

    Raises:
        UserError: if an entry of a registry is not valid.
    """
    schema = schema_for({})
    groups: list[tuple[str, list[type[Settings]]]] = [
        ("data.", [dataset.settings_type for dataset in DATASETS.values()]),
        ("model.", [network.settings_type for network in MODELS.values()]),
        *((f"{name}.", [method.settings_type]) for name, method in METHODS.items()),
        ("train.", [TrainSettings]),
        ("pseudo_label.", [PseudoLabelSettings]),
    ]
    yield from ((key, field) for key, field in list_keys(schema) if "." not in key)
    for prefix, section_types in groups:
        unique = {(k, field.description): field for section in section_types for k, field in list_keys(section, prefix)}
        yield from ((key, field) for (key, _), field in unique.items())


def text_keys() -> dict[str, bool]:
    """Return the dotted keys that hold text of any kind, and whether they may be null instead."""

    def kinds(annotation: object) -> set[object]:
        """Return the members of a union, without ``Annotated``."""
        if get_origin(annotation) is Annotated:
            return kinds(get_args(annotation)[0])
        if get_origin(annotation) in (Union, UnionType):
            return set().union(*map(kinds, get_args(annotation)))
        return {annotation}

    fields = {key: kinds(field.annotation) for key, field in all_keys()}
    return {key: NoneType in types for key, types in fields.items() if str in types and types <= {str, NoneType}}


def flatten(config: Config) -> dict[str, Any]:
    """Return the values that the run uses, by dotted key; sections of other methods are left out."""
    used = {*Config.model_fields, config.method}
    keys = [key for key, _ in list_keys(type(config)) if key.partition(".")[0] in used]
    return {key: value_of(config, key) for key in keys}


def value_of(config: Config, key: str) -> object:
    """Return the value of a dotted key, None if the config has no such key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def to_yaml(config: Config) -> str:
    """Return the config as YAML with every key, which ``load_config`` reads back.

    The sections of other methods are left out if they hold defaults, so that a run can be opened where a method from
    ``--import`` is not known.
    """
    values = config.model_dump()
    for name, method in METHODS.items():
        if name != config.method and getattr(config, name) == method.settings_type():
            del values[name]
    return yaml.safe_dump(values, sort_keys=False)
