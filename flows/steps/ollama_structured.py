"""Answers in JSON: read, checked against the schema, asked for once more where they do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import jsonschema
import referencing
import referencing.exceptions
from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

from ai_task_orchestra.errors import ModelOutputError, StepInputError
from flows.clients.ollama_answer import ModelAnswer

_FENCED: Final = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_MAX_EXCERPT: Final = 120


class JsonFormat:
    """What `format` asks for: "json" (any JSON) or a JSON schema.

    Raises:
        StepInputError: the schema is none.
    """

    def __init__(self, wanted: str | dict[str, Any]) -> None:
        self._validator: Any = None
        if isinstance(wanted, dict):
            try:
                _Validator.check_schema(wanted)
            except jsonschema.exceptions.SchemaError as exc:
                where = "/".join(str(part) for part in exc.path) or "schema"
                raise StepInputError(f"format: not a JSON schema (at {where})") from exc
            # The empty registry keeps a `$ref` from fetching anything.
            self._validator = _Validator(wanted, registry=referencing.Registry())

    def parse(self, text: str) -> Any:
        """The value that `text` holds.

        Raises:
            ValueError: not JSON, or not of the schema; the message says where.
        """
        fenced = _FENCED.match(text)
        try:
            value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse_constant)
        except RecursionError as exc:
            raise ValueError("it is nested too deeply") from exc
        if self._validator is not None:
            try:
                error = next(iter(self._validator.iter_errors(value)), None)
            except (referencing.exceptions.Unresolvable, RecursionError) as exc:
                raise StepInputError("format: the schema refers to something that is not in it") from exc
            if error is not None:
                where = "/".join(str(part) for part in error.absolute_path) or "the whole"
                raise ValueError(f"{where} does not fit the schema ({error.validator})")
        return value


async def in_format(
    wanted: str | dict[str, Any], ask: Callable[[str | None], Awaitable[ModelAnswer]]
) -> tuple[ModelAnswer, Any]:
    """The model's answer and the value in it.

    `ask` gets None, and for the one repair the request for a correction that is to follow the first answer.

    Raises:
        ModelOutputError: the second answer does not fit either (retryable), or one was cut off (not: the next
            would be cut at the same place).
    """
    form = JsonFormat(wanted)
    reason = ""
    for correction in (None, "Your last answer can't be used: {}. Answer again, with the corrected JSON only."):
        answer = await ask(correction and correction.format(reason))
        if answer.truncated:
            raise ModelOutputError("the answer was cut off before its JSON was complete (raise num_predict)")
        try:
            return answer, form.parse(answer.text)
        except ValueError as exc:
            reason = f"it is not JSON ({exc.msg})" if isinstance(exc, json.JSONDecodeError) else str(exc)
    excerpt = " ".join(answer.text.split())[:_MAX_EXCERPT]
    raise ModelOutputError(f"the answer does not have the wanted form, {reason[:80]}: {excerpt}", retryable=True)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _linear_pattern(_: Any, pattern: str, instance: Any, __: Any) -> Any:
    """`pattern` by an engine that takes linear time: the pattern is a user's, the text a model's.

    Patterns it can't do (look-around, back-references) are left to the model server's own constraint.
    """
    if not isinstance(instance, str):
        return
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError:
        return
    try:
        validator.validate_python(instance)
    except ValidationError:
        yield jsonschema.exceptions.ValidationError("the text does not match the pattern")


def _unchecked(*_: Any) -> Any:
    return iter(())


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
    if "patternProperties" in schema:
        return _unchecked()
    return _KEYWORDS["additionalProperties"](validator, wanted, instance, schema)


_KEYWORDS: Final[dict[str, Any]] = dict(jsonschema.Draft202012Validator.VALIDATORS)
# Keywords that match a user's pattern by Python's own engine, which may take for ever, are not checked.
_Validator: Final = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    {
        "pattern": _linear_pattern,
        "patternProperties": _unchecked,
        "additionalProperties": _additional_properties,
        "unevaluatedProperties": _unchecked,
    },
)
