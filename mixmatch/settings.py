"""What every group of settings is made of: the strict base class, the ranges that keys share, and what says a slip."""

import difflib
import os
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

Count = Annotated[int, Field(ge=1, le=2**53)]
CountOrZero = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Alpha = Annotated[float, Field(ge=1e-3, le=1e3)]  # of Beta(alpha, alpha)


class Settings(BaseModel):
    """A group of keys. Unknown keys and values of another type are errors; nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _fit_for_paths(cls, value: Any) -> Any:  # noqa: ANN401 - of any key
        if isinstance(value, str):
            if "\0" in value:
                raise ValueError("must not contain a NUL character")
            try:
                os.fsencode(value)
            except UnicodeEncodeError:
                raise ValueError("must not contain half of a surrogate pair") from None
        return value


def list_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of a section that holds a value, dotted, with its field: ``("train.lr", FieldInfo)``."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from list_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def explain(error: ValidationError, schema: type[Settings], where_keys_are: str = "") -> str:
    """Say in one line what is wrong with the first key that is, and with how many more.

    Args:
        error: of validating values by ``schema``.
        schema: knows the keys, for a guess at which was meant.
        where_keys_are: what to say of an unknown key that resembles none; all keys of the schema if empty.
    """
    keys = dict(list_keys(schema))
    sections = {key.rpartition(".")[0] for key in keys} | {*schema.model_fields} - {""}
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
            everything = where_keys_are or f"there are {', '.join(keys)}"
            allowed = f"unknown key; did you mean {close[0]}?" if close else f"unknown key; {everything}"
        elif item["type"] == "model_type":
            example = next((k for k in keys if k.startswith(f"{key}.")), None)
            allowed = f"must be a section with keys such as {example}" if example else "must be a section without keys"
        else:
            allowed = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        problems.setdefault(key, (item["input"], []))[1].append(allowed)
    (key, (given, allowed)), *more = problems.items()
    parts = [key] if key else []
    unique = list(dict.fromkeys(allowed))
    text = unique[0] + "".join(" or" + part.removeprefix("must be") for part in unique[1:])
    parts.append(text if "unknown key" in text or not key else f"{text}, got {brief(given)}")
    rest = f" (and {len(more)} more: {', '.join(k for k, _ in more[:3])})" if more else ""
    return ": ".join(parts) + rest


def brief(value: Any) -> str:  # noqa: ANN401 - what a person gave can be anything
    """Return a value as Python writes it, in at most 60 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        text = f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 60 else text[:57] + "..."
