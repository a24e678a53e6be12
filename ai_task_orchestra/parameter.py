"""A template's parameter: what it declares, and whether a value fits it."""

from __future__ import annotations

import json
import keyword
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError, SchemaError, SchemaValidator, ValidationError, core_schema

from ai_task_orchestra.step_types import Kind, kind_of

# Also a Python argument's name in the flow. Prefect's flows keep the last two for themselves.
_NAME: Final = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
_RESERVED: Final = frozenset({"return_state", "wait_for"})
_INTEGERS: Final = range(-(2**63), 2**63)
_MAX_SHOWN: Final = 200
_WITH_ARTICLE: Final[Mapping[Kind, str]] = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "a boolean",
    "array": "an array",
    "object": "an object",
}


class ParameterSpec(BaseModel):
    """One parameter of a template.

    `minimum` and `maximum` bound integers and numbers. `pattern` is searched for in a string, as JSON schema does it
    (write `^...$` for the whole), by an engine whose time grows with the text's length only; lookaround and
    back-references are not possible. None stands for "not set": null is no value of any parameter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=_NAME)
    type: Kind
    required: bool = True
    description: str
    default: JsonValue = None
    enum: list[JsonValue] | None = Field(default=None, min_length=1)
    minimum: int | float | None = None
    maximum: int | float | None = None
    pattern: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_required_with_default(cls, data: Any) -> Any:
        """A parameter with a default need not say that it is not required."""
        if isinstance(data, Mapping) and data.get("default") is not None and "required" not in data:
            return {**data, "required": False}
        return data

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if value in _RESERVED or keyword.iskeyword(value):
            raise ValueError("this word is reserved by Python or Prefect")
        return value

    @field_validator("pattern")
    @classmethod
    def _usable_pattern(cls, value: str | None) -> str | None:
        """Ours is the linear-time engine; Prefect's server checks its JSON schema with Python's."""
        if value is not None:
            try:
                _matcher(value)
                with warnings.catch_warnings(action="error"):
                    re.compile(value)
            except (SchemaError, re.error, Warning) as exc:
                raise ValueError("this is no regular expression that both Rust's regex and Python can use") from exc
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, reason in self._contradictions():
            raise PydanticCustomError("contradiction", "{reason}", {"field": field, "reason": reason})
        return self

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """The field at fault and what is wrong with it."""
        for bound in ("minimum", "maximum"):
            if getattr(self, bound) is not None and self.type not in ("integer", "number"):
                yield bound, f"only integers and numbers have a {bound}, not a parameter of type {self.type}"
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            yield "minimum", "minimum is larger than maximum"
        if self.pattern is not None and self.type != "string":
            yield "pattern", f"only strings have a pattern, not a parameter of type {self.type}"
        if self.required and self.default is not None:
            yield "default", "a required parameter has no default"
        for value in self.enum or ():
            if reason := self.type_problem(value):
                yield "enum", f"enum: each value {reason}"
        if self.default is not None and (reason := self.problem(self.default)):
            yield "default", f"default {reason}"

    def as_api(self) -> dict[str, Any]:
        """The parameter as the REST API shows it: the reference's four fields, then those that are set."""
        shown: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "required": self.required,
            "description": self.description,
        }
        rest = ("default", "enum", "minimum", "maximum", "pattern")
        return shown | {name: value for name in rest if (value := getattr(self, name)) is not None}

    def problem(self, value: Any) -> str | None:
        """Why `value` does not fit, without repeating it; None if it does."""
        return self.type_problem(value) or self._range_problem(value) or self._pattern_problem(value)

    def type_problem(self, value: Any) -> str | None:
        """Why `value` is of another type; a part of `problem` that needs nothing of what is inside an array."""
        kind = kind_of(value)
        if kind != self.type and not (kind == "integer" and self.type == "number"):
            return f"must be {_WITH_ARTICLE[self.type]}, not {'null' if kind is None else _WITH_ARTICLE[kind]}"
        if kind == "integer" and value not in _INTEGERS:
            return "must fit 64 bits"
        if kind == "number" and not math.isfinite(value):
            return "must be finite"
        return None

    def _range_problem(self, value: Any) -> str | None:
        if self.enum is not None and value not in self.enum:
            allowed = ", ".join(json.dumps(each, ensure_ascii=False) for each in self.enum)
            return f"must be one of {allowed if len(allowed) <= _MAX_SHOWN else allowed[:_MAX_SHOWN] + '...'}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum}"
        return None

    def _pattern_problem(self, value: Any) -> str | None:
        if self._pattern is None:
            return None
        try:
            self._pattern.validate_python(value)
        except ValidationError:
            return f"must match the pattern {self.pattern}"
        return None

    @cached_property
    def _pattern(self) -> SchemaValidator | None:
        return None if self.pattern is None else _matcher(self.pattern)


def _matcher(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, strict=True))
