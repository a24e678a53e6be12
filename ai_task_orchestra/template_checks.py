"""What one part of a template says about another: step types and their fields, placeholders, names.

Everything is found when the file is loaded; nothing of this is left for a task to stumble over.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ai_task_orchestra.expressions import ExpressionError, Placeholder, parse, sole_placeholder
from ai_task_orchestra.step_types import STEP_TYPES, FieldSpec, Kind, StepType, kind_of
from ai_task_orchestra.template_yaml import Location

if TYPE_CHECKING:
    from ai_task_orchestra.template import StepSpec, TemplateSpec

Problem = tuple[Location, str]

_SECONDS = FieldSpec(("number",))


def find_problems(spec: TemplateSpec) -> Iterator[Problem]:
    """Every problem and where it is, in the file's order."""
    yield from _repeated((p.name for p in spec.parameters), "parameters", "parameter")
    if not spec.steps:
        yield ("steps",), "a template has at least one step"
    known = _Known({p.name: (p.type,) for p in spec.parameters})
    for index, step in enumerate(spec.steps):
        yield from _step_problems(step, ("steps", index), known)
        known.add(step)
    yield from _repeated((s.name for s in spec.steps), "steps", "step")
    if spec.result is not None:
        yield from known.all_problems(spec.result, ("result",))


class _Known:
    """What placeholders may name at one place of a template: the parameters and the steps before."""

    def __init__(self, parameters: Mapping[str, tuple[Kind, ...]]) -> None:
        self.parameters = parameters
        self.steps: dict[str, StepType] = {}

    def add(self, step: StepSpec) -> None:
        if step.type in STEP_TYPES:
            self.steps[step.name] = STEP_TYPES[step.type]

    @property
    def offers_content(self) -> bool:
        return any(each.offers_content for each in self.steps.values())

    def all_problems(self, value: Any, location: Location) -> Iterator[Problem]:
        """Those of every string in a value, and of the names in it."""
        yield from _rendered_names(value, location)
        for where, text in _texts(value, location):
            yield from self.problems(text, where)

    def problems(self, text: str, location: Location) -> Iterator[Problem]:
        try:
            parts = parse(text)
        except ExpressionError as exc:
            yield location, str(exc)
            return
        for part in parts:
            if isinstance(part, Placeholder) and (reason := self._unknown(part)):
                yield location, reason

    def kinds(self, placeholder: Placeholder) -> tuple[Kind, ...]:
        """The kinds its value may have; none if it is unknown."""
        if placeholder.step is None:
            return self.parameters.get(placeholder.name, ())
        step_type = self.steps.get(placeholder.step)
        return step_type.outputs.get(placeholder.name, ()) if step_type else ()

    def _unknown(self, placeholder: Placeholder) -> str | None:
        if placeholder.step is None:
            if placeholder.name in self.parameters:
                return None
            return f"unknown parameter in {{{{ {placeholder} }}}}{_suggestion(placeholder.name, self.parameters)}"
        step_type = self.steps.get(placeholder.step)
        if step_type is None:
            return f"no step before is called {placeholder.step!r}{_suggestion(placeholder.step, self.steps)}"
        if placeholder.name in step_type.outputs:
            return None
        outputs = ", ".join(step_type.outputs) or "nothing"
        return f"a step of type {step_type.name} has no output {placeholder.name!r} (it has: {outputs})"


def _step_problems(step: StepSpec, location: Location, known: _Known) -> Iterator[Problem]:
    step_type = STEP_TYPES.get(step.type)
    if step_type is None:
        yield (*location, "type"), f"unknown step type {step.type!r}{_suggestion(step.type, STEP_TYPES)}"
        return
    for name, value in step.fields.items():
        yield from _field_problems(name, value, step_type, (*location, name), known)
    for name, field in step_type.fields.items():
        if field.required and name not in step.fields:
            yield location, f"a step of type {step.type} needs the field {name!r}"
    if step_type.content_default and "content" not in step.fields and not known.offers_content:
        yield location, "no step before has an output or content that this step could take: 'content' is missing"
    yield from _common_problems(step, location, known)


def _field_problems(name: str, value: Any, step_type: StepType, location: Location, known: _Known) -> Iterator[Problem]:
    field = step_type.fields.get(name)
    if field is None:
        hint = _suggestion(name, step_type.fields) or f" (it has: {', '.join(step_type.fields)})"
        yield location, f"unknown field {name!r} of a step of type {step_type.name}{hint}"
        return
    yield from known.all_problems(value, location)
    yield from _kind_problems(name, value, field, location, known)


def _common_problems(step: StepSpec, location: Location, known: _Known) -> Iterator[Problem]:
    if step.when is not None:
        found = list(known.problems(step.when, (*location, "when")))
        yield from found
        if not found and sole_placeholder(step.when) is None:
            yield (*location, "when"), "'when' must be one placeholder"
    if isinstance(step.timeout_seconds, str):
        where = (*location, "timeout_seconds")
        yield from known.problems(step.timeout_seconds, where)
        yield from _kind_problems("timeout_seconds", step.timeout_seconds, _SECONDS, where, known)


def _kind_problems(name: str, value: Any, field: FieldSpec, location: Location, known: _Known) -> Iterator[Problem]:
    """Whether a value written out has the right type, or one placeholder can have it."""
    try:
        placeholder = sole_placeholder(value)
    except ExpressionError:
        return  # reported already
    if placeholder is None:
        if not field.accepts(kind_of(value)):
            yield location, f"the field {name!r} must be {field.expected}, not {kind_of(value) or 'null'}"
        return
    kinds = known.kinds(placeholder)
    if kinds and not any(field.may_be(kind) for kind in kinds):
        yield location, f"the field {name!r} must be {field.expected}; {{{{ {placeholder} }}}} is {' or '.join(kinds)}"


def _texts(value: Any, location: Location) -> Iterator[tuple[Location, str]]:
    """Every string in a value with its place."""
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, (*location, key))


def _rendered_names(value: Any, location: Location) -> Iterator[Problem]:
    """Names of fields are never rendered: a placeholder in one would silently stay as it is."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and "{{" in key:
                yield (*location, key), "a field's name can hold no placeholder"
            yield from _rendered_names(item, (*location, key))


def _repeated(names: Iterable[str], group: str, word: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield (group, index, "name"), f"two {word}s are called {name!r}; each needs a name of its own"
        seen.add(name)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
