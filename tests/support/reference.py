"""The customer's API document, read as data: each endpoint with its example request and response."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "api-reference.md"


@dataclass(frozen=True)
class Endpoint:
    """One `####` section: title, method and path as printed, examples of request and response (None: no body)."""

    title: str
    method: str
    path: str
    request: Any
    response: Any


def endpoints() -> list[Endpoint]:
    """Every endpoint of the document, in its order."""
    found = []
    for section in re.split(r"^#### ", DOCUMENT.read_text(), flags=re.M)[1:]:
        title = section.splitlines()[0].strip()
        line = re.search(r"```\n(GET|POST|PATCH|DELETE|PUT) (\S+)\n```", section)
        assert line, f"no request line under {title!r}"
        found.append(
            Endpoint(title, line[1], line[2], _example(section, "Request Body"), _example(section, "Response"))
        )
    return found


def examples(title: str) -> list[Any]:
    """The JSON blocks of a `###` section, in their order."""
    section = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", DOCUMENT.read_text(), flags=re.M | re.S)
    assert section, f"no section {title!r}"
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section[1], flags=re.S)]


def _example(section: str, heading: str) -> Any:
    match = re.search(rf"\*\*{heading}\*\*:\s*```json\n(.*?)```", section, flags=re.S)
    return json.loads(match[1]) if match else None


def differences(example: Any, actual: Any, where: str = "$") -> list[str]:
    """What of `actual` does not have the shape of `example`: other fields, other JSON types, times that are none.

    Lists are compared item by item with the example's first item when their lengths differ.
    """
    if isinstance(example, dict) and isinstance(actual, dict):
        wrong = [f"{where}: missing {name}" for name in example.keys() - actual.keys()]
        wrong += [f"{where}: not in the reference: {name}" for name in actual.keys() - example.keys()]
        for name in example.keys() & actual.keys():
            wrong += differences(example[name], actual[name], f"{where}.{name}")
        return wrong
    if isinstance(example, list) and isinstance(actual, list):
        pairs = (
            zip(example, actual, strict=True)
            if len(example) == len(actual)
            else ((e, a) for e in example[:1] for a in actual)
        )
        return [text for index, (e, a) in enumerate(pairs) for text in differences(e, a, f"{where}[{index}]")]
    if _kind(example) != _kind(actual):
        return [f"{where}: {_kind(actual)} instead of {_kind(example)}"]
    if isinstance(example, str) and _is_time(example) and not _is_time(actual):
        return [f"{where}: {actual!r} is no UTC time ending in Z"]
    return []


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return type(value).__name__


def _is_time(text: str) -> bool:
    try:
        return text.endswith("Z") and datetime.fromisoformat(text).utcoffset() is not None
    except ValueError:
        return False
