"""Turns a template into a Prefect flow: done once, when `flows.catalog` is imported.

Flow, deployment and template share one name. The flow takes the template's parameters by name, with their types,
defaults, enums, bounds and descriptions in its signature and docstring, because that is where Prefect reads the form
and the schema of a deployment from. Prefect's own check of a flow's arguments is off: it would turn "5" into 5 and
repeat values in messages; ours runs in the flow (`flows.attempt`).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Final

from prefect import Flow
from pydantic import Field

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.parameter import ParameterSpec
from ai_task_orchestra.protocol import CATALOG_MODULE
from ai_task_orchestra.settings import Settings, load_settings
from ai_task_orchestra.step_types import STEP_TYPES
from ai_task_orchestra.template import StepSpec, TemplateSpec
from flows.attempt import Attempt, CompiledTemplate
from flows.step_task import CompiledStep, task_for
from flows.steps import STEPS
from flows.steps.base import Step

_PYTHON_TYPES: Final[Mapping[str, Any]] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list[Any],
    "object": dict[str, Any],
}


def compile_template(
    spec: TemplateSpec, *, settings: Settings | None = None, steps: Mapping[str, Step] | None = None
) -> Flow[..., Any]:
    """The flow of a template.

    Args:
        spec: the checked template.
        settings: those of the process that will run the flow; read from the environment if not given.
        steps: what implements the step types; the real ones if not given.

    Raises:
        ConfigurationError: a step type has no implementation, or the settings can't be used.
    """
    implementations = STEPS if steps is None else steps
    compiled = CompiledTemplate(
        spec=spec,
        steps=tuple(_compile_step(step, implementations) for step in spec.steps),
        settings=settings or load_settings(),
    )

    async def run(**parameters: Any) -> Any:
        return await Attempt(compiled).run(parameters)

    run.__name__ = run.__qualname__ = spec.identifier
    run.__module__ = CATALOG_MODULE
    run.__doc__ = _docstring(spec)
    run.__signature__ = _signature(spec)  # type: ignore[attr-defined]
    return Flow(
        run,
        name=spec.name,
        version=version_of(spec),
        description=spec.description,
        retries=0,
        validate_parameters=False,
        persist_result=False,
        log_prints=False,
    )


def version_of(spec: TemplateSpec) -> str:
    """Changes whenever the template does, wherever its file lies."""
    content = spec.model_dump_json(exclude={"path", "name_line"})
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _compile_step(step: StepSpec, implementations: Mapping[str, Step]) -> CompiledStep:
    try:
        implementation = implementations[step.type]
    except KeyError:
        raise ConfigurationError(f"the step type {step.type!r} has no implementation") from None
    return CompiledStep(step, STEP_TYPES[step.type], implementation, task_for(step))


def _signature(spec: TemplateSpec) -> inspect.Signature:
    return inspect.Signature([_argument(parameter) for parameter in spec.parameters])


def _argument(parameter: ParameterSpec) -> inspect.Parameter:
    """An optional parameter without a default has the Python default None, which stands for "not given".

    Its schema takes null, too: Prefect's form sends the default of every field that is left alone.
    """
    constraints: dict[str, Any] = {"ge": parameter.minimum, "le": parameter.maximum, "pattern": parameter.pattern}
    if parameter.enum is not None:
        constraints["json_schema_extra"] = {"enum": parameter.enum}
    set_ones = Field(**{name: value for name, value in constraints.items() if value is not None})
    annotation: Any = Annotated[_PYTHON_TYPES[parameter.type], set_ones]
    if not parameter.required and parameter.default is None:
        annotation = annotation | None
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        default=inspect.Parameter.empty if parameter.required else parameter.default,
    )


def _docstring(spec: TemplateSpec) -> str:
    """Google's form, one line per parameter: Prefect takes the descriptions from it."""
    lines = [f"    {each.name}: {_one_line(each.description)}" for each in spec.parameters]
    return "\n".join([_one_line(spec.description), "", *(["Args:", *lines] if lines else [])])


def _one_line(text: str) -> str:
    return " ".join(text.split())
