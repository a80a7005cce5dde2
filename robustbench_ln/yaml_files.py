"""Reading YAML that people write: plain data only, with the line of everything, so that an error can say where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from robustbench_ln.errors import InputError

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 20
Where = tuple[str | int, ...]
"""The way to a value: keys of mappings and positions in lists, the outermost first."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """The content of a YAML file.

    Attributes:
        name: of the file, for messages.
        content: mappings, lists, text, numbers, truth values and None.
        lines: the line of every value, from 1; the whole content is at ``()``.
    """

    name: str
    content: Any
    lines: dict[Where, int]

    def fail(self, where: Where, problem: str, *, found: str = "", hint: str = "") -> NoReturn:
        """Raise InputError about the value at `where`, or about the innermost one around it that exists."""
        known = where
        while known not in self.lines and known:
            known = known[:-1]
        named = ".".join(map(str, where)) + ": " if where else ""
        raise InputError(f"{self.name}, line {self.lines.get(known, 1)}: {named}{problem}", found=found, hint=hint)


def read_yaml(path: Path, *, as_text: bool = False) -> YamlFile:
    """Read a YAML file that may come from anybody.

    Args:
        path: the file, at most 1 MiB.
        as_text: leave scalars as they are written (YAML 1.1 takes ``0:1:0.5`` for a number to the base 60).

    Raises:
        InputError: the file is missing, too large, no YAML, or uses tags, aliases or a key twice.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}", found=error.strerror or str(error), hint="a YAML file") from None
    except UnicodeDecodeError:
        raise InputError(f"cannot read {path}", found="no UTF-8 text", hint="a YAML file") from None
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{path.name} is too large", found=f"more than {_MAX_BYTES} bytes", hint="a file of settings")
    lines: dict[Where, int] = {}
    try:
        loader = (yaml.BaseLoader if as_text else yaml.SafeLoader)(text)
        # Aliases are found among the events: a composed tree no longer tells them.
        for event in yaml.parse(text, yaml.SafeLoader):
            line = event.start_mark.line if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _problem(path, line, "anchors and aliases are not read")
            tag = getattr(event, "tag", None)
            if tag:
                raise _problem(path, line, "tags are not read", found=tag)
        node = loader.get_single_node()
        content = None if node is None else _plain(loader, node, (), lines, path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise _problem(path, line, "not YAML", found=str(error.problem)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path.name} is not YAML", found=str(error).split("\n")[0], hint="plain keys and values"
        ) from None
    return YamlFile(path.name, content, lines)


def _problem(path: Path, line: int, problem: str, *, found: str = "") -> InputError:
    return InputError(f"{path.name}, line {line + 1}: {problem}", found=found, hint="plain keys and values")


def _plain(loader: Any, node: yaml.Node, where: Where, lines: dict[Where, int], path: Path) -> Any:
    lines[where] = node.start_mark.line + 1
    if len(where) > _MAX_DEPTH:
        raise _problem(path, node.start_mark.line, "nested too deeply")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*where, i), lines, path) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _problem(path, key_node.start_mark.line, "a key that is no text")
        key = str(key_node.value)
        if key in mapping:
            raise _problem(path, key_node.start_mark.line, "a key that stands twice", found=key)
        mapping[key] = _plain(loader, value_node, (*where, key), lines, path)
        lines[*where, key] = key_node.start_mark.line + 1
    return mapping
