"""Values that Prefect takes, stores and gives back as what they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from ai_task_orchestra.errors import ParameterError

#: A dictionary with this key is a program to Prefect, which would run it (templates, workspace variables).
PREFECT_KIND: Final = "__prefect_kind"
INTEGERS: Final = range(-(2**63), 2**63)

_PROGRAM: Final = f"holds an object with the key {PREFECT_KIND!r}, which Prefect would evaluate"


def refuse_programs(parameters: dict[str, Any]) -> None:
    """Refuse what Prefect would evaluate: there is no way to send such a dictionary to it as plain data.

    Raises:
        ParameterError: with each parameter that holds one.
    """
    problems = {
        name: _PROGRAM for name, value in parameters.items() if any(_is_program(part) for part, _ in _parts(value))
    }
    if PREFECT_KIND in parameters:
        problems[PREFECT_KIND] = "is a name that Prefect keeps for itself"
    if problems:
        raise ParameterError(problems)


def problem(value: Any, *, max_nesting: int) -> str | None:
    """Why a value that no request was checked for can't be sent to Prefect; None if it can."""
    for part, depth in _parts(value):
        if depth > max_nesting and isinstance(part, dict | list):
            return f"is nested deeper than {max_nesting} levels"
        if _is_program(part):
            return _PROGRAM
        texts = list(part) if isinstance(part, dict) else [part] if isinstance(part, str) else []
        if not all(_storable(text) for text in texts):
            return "holds a text with NUL or half of a surrogate pair"
        if isinstance(part, float) and not math.isfinite(part):
            return "holds a number that is not finite"
        if isinstance(part, int) and part not in INTEGERS:
            return "holds an integer that does not fit 64 bits"
    return None


def _is_program(part: Any) -> bool:
    return isinstance(part, dict) and PREFECT_KIND in part


def _storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _parts(value: Any) -> Iterator[tuple[Any, int]]:
    """A value and everything in it, with the number of containers around it and one; depth costs no stack."""
    stack = [(value, 1)]
    while stack:
        part, depth = stack.pop()
        yield part, depth
        if isinstance(part, dict):
            stack.extend((item, depth + 1) for item in part.values())
        elif isinstance(part, list):
            stack.extend((item, depth + 1) for item in part)
