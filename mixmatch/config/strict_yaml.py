"""YAML as plain dicts, lists and scalars: no tags that run code, no aliases, no repeated keys."""

import re
from pathlib import Path
from typing import Any

import yaml

from mixmatch.errors import UserError
from mixmatch.files import read_file
from mixmatch.settings import brief


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of ``key: value`` lines; an empty one holds none.

    Raises:
        UserError: in one line, if it cannot be read or holds anything else.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; a YAML file is needed") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; a YAML file is needed") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict | None):
        raise UserError(f"{path}: must hold 'key: value' lines, got {brief(values)}")
    return values or {}


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401 - what YAML holds can be anything
    """Read YAML from text.

    Args:
        text: the YAML.
        source: how to name it in an error.

    Raises:
        UserError: in one line, if it is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}:{where} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: not valid YAML: {brief(str(error))}") from None
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with 1e-3 read as a number (YAML 1.2), and without aliases and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, f"aliases (*{event.anchor}) are not supported", event.start_mark)
        tag = getattr(self.peek_event(), "tag", None)
        if tag is not None:
            raise yaml.MarkedYAMLError(
                None, None, f"tags ({brief(tag)}) are not supported", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:  # noqa: ANN401
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(None, None, f"a key must be text, got {brief(key)}", node.start_mark)
            if key in keys[:i]:
                raise yaml.MarkedYAMLError(None, None, f"key {brief(key)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
