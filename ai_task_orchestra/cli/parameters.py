"""`-p name=value`: text from the command line becomes a value of the type that the template declares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ai_task_orchestra.client import Parameter, Template
from ai_task_orchestra.errors import ParameterError

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_parameters(given: Sequence[str], template: Template) -> dict[str, Any]:
    """The parameters of a task.

    `name=@file` takes the content of a file, `name=@@text` a text that begins with `@`. Whether the values fit the
    template (bounds, required ones) is the API's to say.

    Raises:
        ParameterError: an argument without `=`, a name the template does not have, or text that is not of its type.
    """
    known = {parameter["name"]: parameter for parameter in template["parameters"]}
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for argument in given:
        name, equals, text = argument.partition("=")
        if not equals:
            problems[argument] = "write it as name=value"
        elif name not in known:
            problems[name] = f"{template['name']} has no such parameter; it has {', '.join(sorted(known)) or 'none'}"
        elif name in values:
            problems[name] = "given twice"
        else:
            try:
                values[name] = _value(_text(text), known[name])
            except ValueError as exc:
                problems[name] = str(exc)
    if problems:
        raise ParameterError(problems)
    return values


def _text(text: str) -> str:
    """The text itself, or that of the file it names.

    Raises:
        ValueError: the file can't be read as text.
    """
    if text.startswith("@@"):
        return text[1:]
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise ValueError(f"{text[1:]} is not text in UTF-8") from exc
    except OSError as exc:
        raise ValueError(f"{text[1:]} can't be read: {exc.strerror}") from exc


def _value(text: str, parameter: Parameter) -> Any:
    """`text` as a value of the parameter's type.

    Raises:
        ValueError: it is none; the message never repeats it.
    """
    kind = parameter["type"]
    if kind == "string":
        return text
    if kind == "boolean":
        if text.strip().lower() not in _BOOLEANS:
            raise ValueError("write true or false")
        return _BOOLEANS[text.strip().lower()]
    if kind == "integer":
        try:
            return int(text)
        except ValueError:
            raise ValueError("write a whole number") from None
    return _json(text, kind)


def _json(text: str, kind: str) -> Any:
    expected: dict[str, tuple[type, ...]] = {"number": (int, float), "array": (list,), "object": (dict,)}
    wanted = {"number": "a number", "array": 'a JSON array such as ["a", "b"]', "object": "a JSON object"}[kind]
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError:
        raise ValueError(f"write {wanted}") from None
    if not isinstance(value, expected[kind]) or isinstance(value, bool):
        raise ValueError(f"write {wanted}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
