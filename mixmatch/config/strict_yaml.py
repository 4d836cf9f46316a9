"""YAML in which 1e-3 is a number, as in YAML 1.2, repeated keys are errors, and text keys need no quotes."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from mixmatch.errors import UserError
from mixmatch.settings import short_repr


def read_yaml(path: Path, text_keys: Collection[str] = ()) -> dict[str, Any]:
    """Return the ``key: value`` pairs in a YAML file, {} for an empty one; arguments as for ``parse_yaml``.

    Raises:
        UserError: if it cannot be read or contains anything else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; give a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a YAML file") from None
    values = parse_yaml(text, str(path), text_keys)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must contain 'key: value' lines, got {short_repr(values)}")
    return values


def parse_yaml(text: str, source: str, text_keys: Collection[str] = ()) -> Any:  # noqa: ANN401 - YAML can hold anything
    """Return the content of YAML text.

    Args:
        text: the YAML.
        source: where it comes from, for error messages.
        text_keys: dotted keys whose values are text as it is written, such as 2024, on or 007; null is still None.

    Raises:
        UserError: if it is not valid.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_text(node, text_keys)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{source}: {line}not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:  # bad tags
        raise UserError(f"{source}: not valid YAML: {short_repr(str(error))}") from None


def _keep_text(node: yaml.Node, text_keys: Collection[str], prefix: str = "") -> None:
    """Make the plain values of ``text_keys`` strings. Keys have at most two parts, so that aliases cannot loop."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(value, yaml.ScalarNode) and f"{prefix}{key.value}" in text_keys and value.tag in _IMPLICIT_TAGS:
            value.tag = "tag:yaml.org,2002:str"
        elif not prefix:
            _keep_text(value, text_keys, f"{key.value}.")


_IMPLICIT_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "merge", "timestamp", "value")}


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise yaml.MarkedYAMLError(None, None, f"key {name!r} is given twice", node.value[index][0].start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_INT = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?\d+(_\d+)*$"), list("-+0123456789"))
_Loader.add_constructor(_INT, lambda _, node: int(node.value))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
