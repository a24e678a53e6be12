"""A template: a YAML document parsed and checked once, frozen from then on.

    1  YAML becomes JSON values with their lines          `template_yaml.read_yaml`
    2  the values become the models below                 shapes, types, ranges
    3  what one part says about another is checked        `template_checks`: step types, fields, placeholders, names

Whatever is wrong is a `TemplateError` with the file and the line.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ai_task_orchestra.errors import TemplateError
from ai_task_orchestra.parameter import ParameterSpec
from ai_task_orchestra.template_checks import find_problems
from ai_task_orchestra.template_yaml import Location, YamlNode, read_yaml

__all__ = ["ParameterCheck", "ParameterSpec", "StepSpec", "TemplateSpec", "parse_template"]

# Also the names of flow and deployment; with `_` for `-` the flow's name in Python.
_TEMPLATE_NAME: Final = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
# No dots: they separate the parts of `steps.<name>.<field>`.
_STEP_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
# Prefect's rule for names of work pools.
_POOL_NAME: Final = r"^[^/%&><]+$"
_MAX_RETRIES: Final = 50

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Delay = Annotated[float, Field(ge=0, le=86400)]
Retries = Annotated[int, Field(ge=0, le=_MAX_RETRIES)]
_FROZEN: Final = ConfigDict(frozen=True, extra="forbid", strict=True)


class StepSpec(BaseModel):
    """One step as written.

    `fields` are the step type's own. `when` is one placeholder. `timeout_seconds` may be one placeholder, too; None
    means the setting's.
    """

    model_config = _FROZEN

    type: str
    name: str = Field(pattern=_STEP_NAME)
    fields: dict[str, JsonValue]
    when: str | None = None
    timeout_seconds: Seconds | str | None = None
    retries: Retries = 0
    retry_delay_seconds: Delay = 1.0

    @model_validator(mode="before")
    @classmethod
    def _separate_own_fields(cls, data: Any) -> Any:
        """The keys that every step may have stay; all others are fields of its type. The name defaults to the type."""
        if not isinstance(data, Mapping):
            raise ValueError("a step must be an object with a type")
        common = {key: value for key, value in data.items() if key in COMMON_STEP_KEYS}
        own = {key: value for key, value in data.items() if key not in COMMON_STEP_KEYS}
        name = {} if "name" in common or not isinstance(common.get("type"), str) else {"name": common["type"]}
        return {**common, **name, "fields": own}


COMMON_STEP_KEYS: Final = frozenset(StepSpec.model_fields) - {"fields"}


@dataclass(frozen=True, slots=True)
class ParameterCheck:
    """How parameters fit their template. `errors` gives the reason for each name, never a value."""

    missing: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        return not self.errors


class TemplateSpec(BaseModel):
    """A template, parsed and checked.

    `steps_as_written` is what the REST API shows, `name_line` where in the file the name stands. None for a time means
    the setting's; durations are seconds.
    `result` is the task's result with placeholders; None: the output of the last step that has one.
    """

    model_config = _FROZEN

    name: str = Field(pattern=_TEMPLATE_NAME, max_length=64)
    description: str = Field(min_length=1)
    parameters: tuple[ParameterSpec, ...] = Field(default=(), strict=False)
    steps: tuple[StepSpec, ...] = Field(strict=False)
    steps_as_written: list[dict[str, Any]]
    result: dict[str, JsonValue] | None = None
    timeout_seconds: Seconds | None = None
    retries: Retries = 0
    retry_delay_seconds: Delay = 1.0
    on_worker_loss: Literal["rerun", "fail"] = "rerun"
    work_pool: str | None = Field(default=None, pattern=_POOL_NAME)
    resources: dict[str, JsonValue] = Field(default_factory=dict)
    path: Path
    name_line: int

    @property
    def identifier(self) -> str:
        """The flow's name in Python: its attribute in the catalog."""
        return self.name.replace("-", "_")

    @cached_property
    def by_name(self) -> Mapping[str, ParameterSpec]:
        """The parameters by name."""
        return {parameter.name: parameter for parameter in self.parameters}

    def check(self, parameters: Mapping[str, Any]) -> ParameterCheck:
        """How these parameters fit; all problems at once, names sorted."""
        missing = {p.name: "is missing" for p in self.parameters if p.required and p.name not in parameters}
        invalid: dict[str, str] = {}
        for name, value in parameters.items():
            declared = self.by_name.get(name)
            reason = declared.problem(value) if declared else "is no parameter of this template"
            if reason:
                invalid[name] = reason
        errors = dict(sorted((missing | invalid).items()))
        return ParameterCheck(missing=sorted(missing), invalid=sorted(invalid), errors=errors)

    def with_defaults(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters, completed by the defaults of those that are not given."""
        defaults = {p.name: copy.deepcopy(p.default) for p in self.parameters if p.default is not None}
        return {**defaults, **parameters}


def parse_template(text: str, path: Path) -> TemplateSpec:
    """Parse and check one template file.

    Args:
        text: the file's content.
        path: the file, for messages and `TemplateSpec.path`.

    Raises:
        TemplateError: with `path` and the line of the first problem.
    """
    document = read_yaml(text, path)
    raw = document.plain()
    if not isinstance(raw, dict):
        raise TemplateError("a template is an object with name, description and steps", path=path, line=document.line)
    ours = {"steps_as_written": raw.get("steps"), "path": path, "name_line": document.line_of(("name",))}
    for name in sorted(raw.keys() & ours.keys()):
        raise TemplateError(f"unknown field {name!r}", path=path, line=document.line_of((name,)))
    try:
        spec = TemplateSpec.model_validate({**raw, **ours})
    except ValidationError as exc:
        raise _first_problem(exc, document, path) from exc
    for location, reason in find_problems(spec):
        raise TemplateError(reason, path=path, line=document.line_of(location))
    return spec


def _first_problem(exc: ValidationError, document: YamlNode, path: Path) -> TemplateError:
    """The problem that stands first in the file, as our error."""
    found = []
    for error in exc.errors(include_input=False, include_url=False):
        location = _location(error)
        found.append((document.line_of(location), _reason(error, location)))
    line, reason = min(found, key=lambda each: each[0])
    return TemplateError(reason, path=path, line=line)


def _location(error: Any) -> Location:
    """Where the problem stands in the file: without the names that only our models have."""
    location: Location = error["loc"]
    if location[:1] == ("steps_as_written",):
        location = ("steps", *location[1:])
    if location[:1] == ("steps",) and location[2:3] == ("fields",):
        location = (*location[:2], *location[3:])
    named = error.get("ctx", {}).get("field")
    return (*location, named) if named else location


def _reason(error: Any, location: Location) -> str:
    name = str(location[-1]) if location else ""
    if error["type"] == "missing":
        return f"{name!r} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown field {name!r}"
    if error["type"] == "contradiction":
        return str(error["msg"])
    where = ".".join(str(part) for part in location)
    return f"{where}: {str(error['msg']).removeprefix('Value error, ')}"
