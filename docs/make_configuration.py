"""Write the tables in docs/configuration.md from the schema of the config: python3 docs/make_configuration.py."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

PAGE = Path(__file__).with_name("configuration.md")
START = "<!-- The rest of this page is written by docs/make_configuration.py. -->\n"
sys.path.insert(0, str(PAGE.parents[1]))

from mixmatch.config import all_keys  # noqa: E402
from mixmatch.data import DATASETS  # noqa: E402
from mixmatch.methods import METHODS  # noqa: E402
from mixmatch.models import MODELS  # noqa: E402

TITLES = {
    "": "The run",
    "data": "`data`: images, split and augmentation",
    "model": "`model`: the network",
    "train": "`train`: length, optimizer, evaluation and execution",
    "pseudo_label": "`pseudo_label`: a stage after training",
}
LINKS = {
    "data": "See [your own photographs](photographs.md).",
    "model": "See [networks](methods.md#networks).",
    "train": "See [speed](speed.md).",
    "pseudo_label": "See [pseudo-label stages](pseudo-labels.md).",
}


def code(value: object) -> str:
    """Return a value as it is written on the command line."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def names(values: Sequence[str]) -> str:
    """Return values, separated by commas."""
    return ", ".join(map(code, values))


# What validators and registries allow, which the schema does not show.
VALUES = {
    "name": "up to 100 letters, digits, `.`, `_`, `-`; `null`",
    "seed": "integer 0 to 2^32 - 1",
    "device": names(["auto", "cpu", "cuda", "cuda:N"]),
    "method": names([*METHODS]),
    "data.dataset": names([*DATASETS]),
    "data.background": names(["white", "black", "gray", "#rrggbb"]),
    "model.network": names([*MODELS]),
    "model.depth": "10, 16, 22, ... up to 1,000",
    "pseudo_label.method": names([*METHODS, "null"]),
    "pseudo_label.name": "as `name`",
}


def make_tables() -> str:
    """Return a table of keys for each section, in Markdown."""
    sections: dict[str, list[tuple[str, FieldInfo]]] = {}
    for key, field in all_keys():
        sections.setdefault(key.rpartition(".")[0], []).append((key, field))
    parts = []
    for section, fields in sections.items():
        lines = [f"## {TITLES.get(section, f'`{section}`: settings of the method')}", ""]
        if section:
            lines += [LINKS.get(section) or describe_method(section), ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cells(key, field))} |" for key, field in fields]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def make_page(page: str) -> str:
    """Return the page with its tables written again."""
    return page.partition(START)[0] + START + "\n" + make_tables()


def describe_method(name: str) -> str:
    """Return a line with links to a method's paper and file."""
    module = sys.modules[METHODS[name].__module__]
    paper = re.search(r"arXiv:(\d+\.\d+)", module.__doc__ or "")
    links = [f"[paper](https://arxiv.org/abs/{paper[1]})"] if paper else []
    links += [f"[code](../{module.__name__.replace('.', '/')}.py)", "[all methods](methods.md)"]
    return f"Used with `method={name}`: {', '.join(links)}."


def cells(key: str, field: FieldInfo) -> list[str]:
    """Return key, default, values and meaning of a key."""
    annotated: Any = Annotated[(field.annotation, *field.metadata, None)]
    values = VALUES.get(key) or describe(TypeAdapter(annotated).json_schema())
    meaning = (field.description or "").replace("<", "&lt;")
    return [code(key), code(field.get_default(call_default_factory=True)), values, meaning]


def describe(schema: dict[str, Any]) -> str:
    """Return in words which values a JSON schema allows."""
    if "anyOf" in schema:
        return ", ".join(describe(part) for part in schema["anyOf"])
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return names(schema["enum"])
    if schema["type"] == "array":
        return f"list of {describe(schema['items']).replace('integer', 'integers')}"
    simple = {"boolean": "`true`, `false`", "null": "`null`", "string": "text"}
    return simple.get(schema["type"]) or f"{schema['type']} {describe_range(schema)}".strip()


def describe_range(schema: dict[str, Any]) -> str:
    """Return the range of numbers that a JSON schema allows; limits of a million and more are left out."""
    limits = {
        sign: schema[name]
        for sign, name in (("≥", "minimum"), (">", "exclusiveMinimum"), ("≤", "maximum"), ("<", "exclusiveMaximum"))
        if name in schema and schema[name] < 1e6
    }
    if limits.keys() == {"≥", "≤"}:
        return f"{limits['≥']:,g} to {limits['≤']:,g}"
    return " and ".join(f"{sign} {limit:,g}" for sign, limit in limits.items())


if __name__ == "__main__":
    PAGE.write_text(make_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
