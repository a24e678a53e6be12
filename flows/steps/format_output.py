"""`format_output`: brings a result into the form the user asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from ai_task_orchestra.errors import StepInputError
from flows.steps import fields as checked
from flows.steps.base import StepContext

# Models like to put JSON into a fenced block.
_FENCED: Final = re.compile(r"```(?:json)?[ \t]*\n(?P<inside>.*)\n```", re.DOTALL | re.IGNORECASE)


class FormatOutput:
    """Formats `content`:

    - `json`: always a JSON document. An object or array, as a value or as JSON text, is printed readably; anything
      else becomes `{"content": ...}`.
    - `markdown`: text as it is; what is no text as a fenced JSON block.
    - `text`: text as it is; what is no text as JSON.
    """

    type: ClassVar[str] = "format_output"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: format, content."""
        form, plain = checked.text(fields, "format"), checked.content(fields)
        value = fields["content"]
        match form:
            case "json":
                return {"output": checked.as_json(_document(value))}
            case "markdown":
                return {"output": plain if isinstance(value, str) else f"```json\n{plain}\n```"}
            case "text":
                return {"output": plain}
        raise StepInputError("format: json, markdown or text is needed")


def _document(value: Any) -> Any:
    if isinstance(value, dict | list):
        return value
    parsed = _parsed(value) if isinstance(value, str) else None
    return {"content": value} if parsed is None else parsed


def _parsed(text: str) -> dict[str, Any] | list[Any] | None:
    """The object or array in a JSON text; None if it is no such text."""
    stripped = text.strip()
    fenced = _FENCED.fullmatch(stripped)
    try:
        value = json.loads(fenced["inside"] if fenced else stripped, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
