"""Fields that steps share, checked: their values come from people.

Every function raises `StepInputError` naming the field, never its value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from ai_task_orchestra.errors import StepInputError
from flows.text import storable

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")


def text(fields: Mapping[str, Any], name: str) -> str:
    """A text that is not empty."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise StepInputError(f"{name}: a text is needed")
    return value


def optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    """A text, or None if the field is absent or empty."""
    return text(fields, name) if fields.get(name) not in (None, "") else None


def texts(fields: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; empty if the field is absent. Numbers are taken as they are written."""
    value = fields.get(name, [])
    if not isinstance(value, list | tuple):
        raise StepInputError(f"{name}: a list is needed")
    return [_argument(item, f"{name}[{index}]") for index, item in enumerate(value)]


def environment(fields: Mapping[str, Any]) -> dict[str, str]:
    """`env`: variables by name; empty if absent."""
    value = fields.get("env", {})
    if not isinstance(value, Mapping):
        raise StepInputError("env: an object is needed")
    for name in value:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise StepInputError("env: a variable's name is made of letters, digits and _")
    return {name: _argument(item, f"env.{name}") for name, item in value.items()}


def flag(fields: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """True or false."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise StepInputError(f"{name}: true or false is needed")
    return value


def seconds(fields: Mapping[str, Any], name: str, *, maximum: float) -> float:
    """A number of seconds from 0 to `maximum`."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= maximum:
        raise StepInputError(f"{name}: a number from 0 to {maximum:g} is needed")
    return float(value)


def content(fields: Mapping[str, Any]) -> str:
    """`content` as text: what is no text becomes JSON."""
    if "content" not in fields:
        raise StepInputError("content: no step before this one has an output")
    value = fields["content"]
    return storable(value) if isinstance(value, str) else as_json(value)


def as_json(value: Any) -> str:
    """Readable JSON text."""
    try:
        return storable(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise StepInputError("content: the value can't be written as JSON") from exc


def _argument(value: Any, name: str) -> str:
    """What a program can be given as an argument or a variable."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise StepInputError(f"{name}: a text is needed")
    if "\0" in value or storable(value) != value:
        raise StepInputError(f"{name}: a character in it can't be passed on")
    return value
