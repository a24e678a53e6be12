"""YAML as templates use it: JSON's values, every one with its line.

Built from the parser's events, so nothing is ever constructed from a tag. Refused, with the line: anchors, aliases and
merge keys (a small file could unfold into gigabytes), tags, names that occur twice, names that are no text, more than
one document, too much text, too deep nesting. Plain scalars are read by JSON's rules: only `true`, `false` and `null`
(or nothing) are special; `on`, `no`, `0755`, `1_000`, `12:30` and dates, which YAML 1.1 turns into something else, are
text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from ai_task_orchestra.errors import TemplateError

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?=[.eE])(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_CONSTANTS: Final = {"": None, "~": None, "null": None, "true": True, "false": False}
# libyaml's parser where the wheel has it: the same events about ten times as fast.
_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A value and where it stands.

    `line` counts from 1. `content` is a scalar, a list of nodes, or a dictionary of nodes; `key_lines` are the lines
    of a dictionary's names.
    """

    content: Any
    line: int
    key_lines: dict[str, int] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.content, dict):
            return {name: node.plain() for name, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content

    def line_of(self, location: Location) -> int:
        """The line of the named field or list item below this node; of the nearest one around it if there is none."""
        node, line = self, self.line
        for part in location:
            if isinstance(node.content, dict) and part in node.content:
                line, node = node.key_lines[str(part)], node.content[part]
            elif isinstance(node.content, list) and isinstance(part, int) and part < len(node.content):
                node = node.content[part]
                line = node.line
            else:
                break
        return line


def read_yaml(text: str, path: Path) -> YamlNode:
    """The one document in `text`.

    Raises:
        TemplateError: see the module's docstring; with `path` and the line.
    """
    try:
        if len(text.encode()) > MAX_BYTES:
            raise TemplateError(f"the file is larger than {MAX_BYTES} bytes", path=path)
        return _Reader(text, path).document()
    except UnicodeEncodeError as exc:  # half a surrogate pair
        raise TemplateError("not YAML: it holds a character that is not allowed", path=path) from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        reason = exc.problem or exc.context or "it can't be read"
        raise TemplateError(f"not YAML: {reason}", path=path, line=mark.line + 1 if mark else None) from exc
    except yaml.YAMLError as exc:  # a character that YAML does not allow: the position is no line
        raise TemplateError("not YAML: it holds a character that is not allowed", path=path) from exc


class _Reader:
    """Builds nodes from the parser's events."""

    def __init__(self, text: str, path: Path) -> None:
        self._path = path
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)

    def document(self) -> YamlNode:
        self._next(yaml.StreamStartEvent)
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise TemplateError("the file is empty", path=self._path, line=1)
        node = self._node(next(self._events), depth=1)
        self._next(yaml.DocumentEndEvent)
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._error(event, "only one document is possible in a file")
        return node

    def _node(self, event: Any, depth: int) -> YamlNode:
        self._refuse_references(event)
        if depth > MAX_DEPTH:
            raise self._error(event, f"nested deeper than {MAX_DEPTH} levels")
        line = event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            if "\0" in event.value:
                raise self._error(event, "the character NUL is not possible in templates")
            return YamlNode(_scalar(event), line)
        if isinstance(event, yaml.SequenceStartEvent):
            return YamlNode(list(self._items(depth)), line)
        return self._mapping(line, depth)

    def _items(self, depth: int) -> Iterator[YamlNode]:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _mapping(self, line: int, depth: int) -> YamlNode:
        content: dict[str, YamlNode] = {}
        key_lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._name(event)
            if name in content:
                raise self._error(event, f"{name!r} occurs twice (first in line {key_lines[name]})")
            key_lines[name] = event.start_mark.line + 1
            content[name] = self._node(next(self._events), depth + 1)
        return YamlNode(content, line, key_lines)

    def _name(self, event: Any) -> str:
        self._refuse_references(event)
        name = _scalar(event) if isinstance(event, yaml.ScalarEvent) else None
        if not isinstance(name, str) or not name:
            raise self._error(event, "a field's name must be text")
        if name == "<<":
            raise self._error(event, "merge keys (<<) are not possible in templates")
        return name

    def _refuse_references(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self._error(event, "anchors (&) and aliases (*) are not possible in templates")
        if getattr(event, "tag", None) is not None:
            raise self._error(event, f"tags are not possible in templates ({event.tag[:60]})")

    def _next(self, kind: type) -> None:
        event = next(self._events)
        if not isinstance(event, kind):
            raise self._error(event, "something that is no document")

    def _error(self, event: Any, reason: str) -> TemplateError:
        return TemplateError(reason, path=self._path, line=event.start_mark.line + 1)


def _scalar(event: Any) -> Any:
    """Quoted and block scalars are text; plain ones are read by JSON's rules."""
    text: str = event.value
    if event.style:  # libyaml says "" for a plain one, the other parser None
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    if _NUMBER.fullmatch(text) and abs(number := float(text)) != float("inf"):
        return number
    return text
