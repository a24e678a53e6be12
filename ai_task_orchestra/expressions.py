"""The two placeholders of templates, and nothing more: `{{ name }}` and `{{ steps.<name>.<field> }}`.

A string that is exactly one placeholder keeps the value's type; inside a longer string the value becomes text.
Rendering is a single pass: what a placeholder stands for is data and is never looked at again, so a value that
contains `{{ ... }}` stays as it is. Braces that are no placeholder (`{"a": 1}`, `}}`) are ordinary text; a `{{` that
begins no placeholder is an error, so that a mistyped one can't slip through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Final

_PLACEHOLDER: Final = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OUTPUT: Final = re.compile(r"steps\.([A-Za-z_][A-Za-z0-9_-]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_MAX_SHOWN: Final = 60


class Absent(Enum):
    """What a placeholder renders to when its parameter was not given or its step has no such output."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


class ExpressionError(ValueError):
    """A `{{ ... }}` that is neither of the two placeholders."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A parameter (`step` None) or an output field of an earlier step."""

    name: str
    step: str | None = None

    def __str__(self) -> str:
        return self.name if self.step is None else f"steps.{self.step}.{self.name}"


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[str | Placeholder, ...]:
    """Split a template's string into literal text and placeholders, in order.

    Raises:
        ExpressionError: a `{{` begins no placeholder.
    """
    parts: list[str | Placeholder] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        _add_text(parts, text[end : match.start()])
        parts.append(_placeholder(match[1]))
        end = match.end()
    _add_text(parts, text[end:])
    return tuple(parts)


def sole_placeholder(value: Any) -> Placeholder | None:
    """The placeholder that `value` consists of; None for anything else.

    Raises:
        ExpressionError: see `parse`.
    """
    if isinstance(value, str) and len(parts := parse(value)) == 1 and isinstance(parts[0], Placeholder):
        return parts[0]
    return None


def render(value: Any, *, parameters: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> Any:
    """Replace the placeholders of a template's value.

    Args:
        value: as written in the template: any JSON value.
        parameters: the parameters that have a value.
        steps: the output fields of the steps that ran, by step name.

    Returns:
        The value, or ABSENT. Fields and list items that are absent are dropped from what holds them.
    """
    if isinstance(value, str):
        return _render_text(value, parameters, steps)
    if isinstance(value, Mapping):
        fields = {key: render(item, parameters=parameters, steps=steps) for key, item in value.items()}
        return {key: item for key, item in fields.items() if item is not ABSENT}
    if isinstance(value, list | tuple):
        items = [render(item, parameters=parameters, steps=steps) for item in value]
        return [item for item in items if item is not ABSENT]
    return value


def _render_text(text: str, parameters: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> Any:
    parts = parse(text)
    if len(parts) == 1 and isinstance(parts[0], Placeholder):
        return _value_of(parts[0], parameters, steps)
    return "".join(part if isinstance(part, str) else _as_text(_value_of(part, parameters, steps)) for part in parts)


def _value_of(wanted: Placeholder, parameters: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> Any:
    source = parameters if wanted.step is None else steps.get(wanted.step, {})
    return source.get(wanted.name, ABSENT)


def _as_text(value: Any) -> str:
    """A value inside a longer string: text as it is, absent as nothing, all else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is ABSENT else json.dumps(value, ensure_ascii=False)


def _placeholder(inner: str) -> Placeholder:
    if _PARAMETER.fullmatch(inner):
        return Placeholder(inner)
    if match := _OUTPUT.fullmatch(inner):
        return Placeholder(match[2], step=match[1])
    shown = _shown(f"{{{{ {inner} }}}}")
    raise ExpressionError(f"{shown} is no placeholder: only {{{{ parameter }}}} and {{{{ steps.name.field }}}} are")


def _add_text(parts: list[str | Placeholder], text: str) -> None:
    if "{{" in text:
        raise ExpressionError(f"{_shown(text[text.index('{{') :])} begins no placeholder")
    if text:
        parts.append(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
