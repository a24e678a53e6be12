"""References: places in a task's parameters that stand for a part of another task's result.

    {"$result": "<task id, or a name in the same batch>", "path": "items.0.title"}

Such an object, anywhere inside a parameter's value, is replaced by that part when the task is released; the type is
kept. `path` goes through the result by names and list indices; without it, it is "output", and "" is the whole result.
Texts are never looked into, and what replaces a reference is data: references in it are none.

Pure: no database, no Prefect.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ai_task_orchestra.errors import ResultReferenceError
from ai_task_orchestra.template import ParameterCheck, TemplateSpec

RESULT: Final = "$result"
PATH: Final = "path"
DEFAULT_PATH: Final = "output"
MAX_PATH: Final = 1000
MAX_TASK: Final = 200

Values = Mapping["Reference", Any]


@dataclass(frozen=True)
class Reference:
    """`task` as written: an id, or the name of a task in the same batch."""

    task: str
    path: str = DEFAULT_PATH


def references(value: Any) -> Iterator[Reference]:
    """Every reference in a parameter's value.

    Raises:
        ValueError: an object with the key `$result` is no reference; the message says why.
    """
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if is_reference(part):
                yield _read(part)
            else:
                stack.extend(reversed(part.values()))
        elif isinstance(part, list):
            stack.extend(reversed(part))


def tasks_referred_to(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The tasks that well-formed parameters refer to, as written, each with the first parameter that does."""
    found: dict[str, str] = {}
    for name, value in parameters.items():
        for reference in references(value):
            found.setdefault(reference.task, name)
    return found


def check(template: TemplateSpec, parameters: Mapping[str, Any]) -> ParameterCheck:
    """How parameters fit, as far as it can be known before the tasks that they refer to have ended."""
    problems: dict[str, str | None] = {}
    for name, value in parameters.items():
        try:
            if list(references(value)):  # every one is looked at
                problems[name] = _early_problem(template, name, value)
        except ValueError as exc:
            problems[name] = str(exc)
    if not problems:
        return template.check(parameters)
    plain = template.check({name: value for name, value in parameters.items() if name not in problems})
    wrong = {name: reason for name, reason in problems.items() if reason is not None}
    missing = [name for name in plain.missing if name not in problems]
    errors = {name: reason for name, reason in plain.errors.items() if name not in problems}
    return ParameterCheck(missing, sorted([*plain.invalid, *wrong]), dict(sorted((errors | wrong).items())))


def pick(result: Any, path: str) -> Any:
    """The part of a result at `path`.

    Raises:
        LookupError: there is nothing.
    """
    part = result
    for step in path.split(".") if path else ():
        if isinstance(part, dict):
            part = part[step]
        elif isinstance(part, list) and step.isascii() and step.isdecimal():
            part = part[int(step)]
        else:
            raise LookupError(step)
    return part


def substitute(value: Any, values: Values) -> Any:
    """`value` with every reference replaced; `values` has them all. Nothing is changed in place."""
    if isinstance(value, dict):
        if is_reference(value):
            return values[_read(value)]
        return {key: substitute(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, values) for item in value]
    return value


class Budget:
    """Counts the bytes of what replaces references before it is put together: one part may be used many times."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._left = limit_bytes, limit_bytes

    def spend(self, size_bytes: int) -> None:
        """Count some.

        Raises:
            ResultReferenceError: it is too much.
        """
        self._left -= size_bytes
        if self._left < 0:
            raise ResultReferenceError(f"with the results in them the parameters are larger than {self._limit} bytes")


def json_size(value: Any) -> int:
    """Bytes of `value` as the shortest JSON; what limits are about."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", errors="replace"))


def _read(part: Mapping[str, Any]) -> Reference:
    if part.keys() - {RESULT, PATH}:
        raise ValueError(f"a reference has the keys {RESULT!r} and {PATH!r} only")
    task, path = part[RESULT], part.get(PATH, DEFAULT_PATH)
    if not isinstance(task, str) or not 0 < len(task) <= MAX_TASK:
        raise ValueError(f"{RESULT!r} must be the id of a task or its name in the batch")
    if not isinstance(path, str) or len(path) > MAX_PATH or (path and "" in path.split(".")):
        raise ValueError(f"{PATH!r} must be names and list indices with dots between")
    return Reference(task, path)


def _early_problem(template: TemplateSpec, name: str, value: Any) -> str | None:
    """What can be said of a value with references in it: whether it is the parameter's kind of container."""
    declared = template.by_name.get(name)
    if declared is None:
        return "is no parameter of this template"
    return None if is_reference(value) else declared.type_problem(value)


def is_reference(value: Any) -> bool:
    """Whether a value as a whole stands for a result."""
    return isinstance(value, dict) and RESULT in value
