"""The base class of every section of the config, value ranges that keys share, and messages about invalid values."""

import difflib
import os.path
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

Count = Annotated[int, Field(ge=1, le=2**53)]
CountOrZero = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
Alpha = Annotated[float, Field(ge=1e-3, le=1e3)]  # of Beta(alpha, alpha)


class Settings(BaseModel):
    """A section of the config. Unknown keys and values of another type are errors; nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Yield what pydantic shows in ``repr``: the values that differ from the defaults."""
        yield from non_default_values(self)


def non_default_values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a section and its subsections that differ from the defaults, by dotted key."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from non_default_values(value, f"{prefix}{name}.")
        elif value != field.get_default(call_default_factory=True):
            yield prefix + name, value


def list_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted keys of a section and its subsections, with their fields: ``("train.lr", FieldInfo)``."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from list_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def describe_validation_error(error: ValidationError, schema: type[BaseModel], hint: str = "") -> str:
    """Return in one line what is wrong with the first invalid key, and which other keys are invalid.

    Args:
        error: from validation by ``schema``.
        schema: has the keys, for suggestions.
        hint: what to do about an unknown key that is not similar to any; default: list the keys.
    """
    keys = [key for key, _ in list_keys(schema)]
    sections = {key.rpartition(".")[0] for key in keys} | schema.model_fields.keys()
    problems: dict[str, list[str]] = {}
    values: dict[str, object] = {}
    for item in error.errors(include_url=False):
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            section, _, name = key.rpartition(".")
            as_section = f"write {section}: and, indented below it, {name}:"
            problems[key] = [as_section if key in keys else f"unknown key; {_suggestion(key, keys, hint)}"]
            continue
        key = _known_part(item["loc"], {*keys, *sections})
        values[key] = item["input"]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "model_type":
            examples = [k for k in keys if k.startswith(f"{key}.")]
            message = f"must be a section with keys such as {examples[0]}" if examples else "must be an empty section"
        for start in ("Input should ", "String should "):
            message = message.replace(start, "must ")
        problems.setdefault(key, []).append(message)
    (key, messages), *more = problems.items()
    text = " or".join([messages[0], *(message.removeprefix("must be") for message in messages[1:])])
    text = f"{key}: {text}" if key else text
    if key in values:
        text += f", got {short_repr(values[key])}"
    return text + (f" (and {len(more)} more: {', '.join(k for k, _ in more[:3])})" if more else "")


def _known_part(location: Sequence[int | str], known: Collection[str]) -> str:
    """Return the key in an error's location, which goes on with list indices and members of unions."""
    parts = [str(part) for part in location]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def _suggestion(key: str, keys: list[str], hint: str) -> str:
    name = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, keys, n=1) or [k for k in keys if k.rpartition(".")[2] == name]
    return f"did you mean {close[0]}?" if close else hint or f"the keys are {', '.join(keys)}"


def to_name(text: str) -> str:
    """Return text as a part of a run's name: letters, digits, ``.``, ``_`` and ``-``, the first a letter or digit."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def short_repr(value: object) -> str:
    """Return a value as Python writes it, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
