"""What Prefect sees of a compiled template before anything runs: names, schema of the form, retries."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.template import TemplateSpec, parse_template
from flows.compiler import compile_template, version_of
from flows.step_task import task_for

TEMPLATE = """\
name: sample-flow
description: |
  A sample
  in two lines
parameters:
  - {name: text, type: string, description: 'The text: "quoted", with <b> and {braces}', pattern: "^a"}
  - {name: count, type: integer, required: false, description: How many, minimum: 1, maximum: 9, default: 3}
  - {name: ratio, type: number, required: false, description: "Args: none", minimum: 0.5}
  - {name: flag, type: boolean, required: false, description: Whether, default: false}
  - {name: items, type: array, required: false, description: Items}
  - {name: env, type: object, required: false, description: Environment, default: {A: "1"}}
  - {name: format, type: string, required: false, description: Format, enum: [json, text]}
  - {name: json, type: string, required: false, description: A name of pydantic's models}
  - {name: copy, type: integer, required: false, description: Another one}
steps:
  - {type: wait, seconds: 1}
"""


class Wait:
    type: ClassVar[str] = "wait"

    async def run(self, fields: Mapping[str, Any], context: Any) -> dict[str, Any]:
        return {}


def spec(text: str = TEMPLATE) -> TemplateSpec:
    return parse_template(text, Path("t.yaml"))


def compiled(text: str = TEMPLATE) -> Flow[..., Any]:
    return compile_template(spec(text), settings=Settings(), steps={"wait": Wait()})


def test_flow_and_template_share_name_and_description() -> None:
    flow = compiled()
    assert (flow.name, flow.description, flow.fn.__name__) == ("sample-flow", "A sample\nin two lines\n", "sample_flow")
    assert flow.isasync
    assert (flow.retries, flow.persist_result, flow.should_validate_parameters) == (0, False, False)


def optional(description: str, **schema: Any) -> dict[str, Any]:
    """Prefect's form sends null for what is left empty: a schema without it could not be submitted."""
    return {"anyOf": [schema, {"type": "null"}], "default": None, "description": description}


def test_prefects_schema_has_types_defaults_enums_bounds_and_descriptions() -> None:
    schema = parameter_schema(compiled()).model_dump(exclude_unset=True)
    assert schema["required"] == ["text"]
    properties = schema["properties"]
    assert [properties[name].pop("position") for name in properties] == list(range(9))
    assert [properties[name].pop("title") for name in properties] == list(properties)
    assert properties == {
        "text": {
            "type": "string",
            "description": 'The text: "quoted", with <b> and {braces}',
            "pattern": "^a",
        },
        "count": {"type": "integer", "description": "How many", "default": 3, "minimum": 1, "maximum": 9},
        "ratio": optional("Args: none", type="number", minimum=0.5),
        "flag": {"type": "boolean", "description": "Whether", "default": False},
        "items": optional("Items", type="array", items={}),
        "env": {
            "type": "object",
            "description": "Environment",
            "default": {"A": "1"},
            "additionalProperties": True,
        },
        "format": optional("Format", type="string", enum=["json", "text"]),
        "json": optional("A name of pydantic's models", type="string"),
        "copy": optional("Another one", type="integer"),
    }


def test_the_flow_takes_its_parameters_by_name_only() -> None:
    parameters = inspect.signature(compiled().fn).parameters
    assert {each.kind for each in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["text"].default is inspect.Parameter.empty
    assert parameters["format"].default is None


def test_a_template_without_parameters_compiles() -> None:
    flow = compiled("name: a\ndescription: b\nsteps: [{type: wait, seconds: 1}]")
    assert parameter_schema(flow).model_dump(exclude_unset=True).get("properties") == {}


def test_the_version_changes_with_the_template_and_not_with_its_place() -> None:
    version = version_of(spec())
    assert compiled().version == version
    assert version_of(parse_template(TEMPLATE, Path("elsewhere.yaml"))) == version
    assert version_of(parse_template("# a remark\n" + TEMPLATE, Path("t.yaml"))) == version
    assert version_of(spec(TEMPLATE.replace("seconds: 1", "seconds: 2"))) != version


def test_a_step_type_without_implementation_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="'wait' has no implementation"):
        compile_template(spec(), settings=Settings(), steps={})


def test_a_steps_runs_are_named_after_it_and_nothing_of_it_is_cached() -> None:
    task = task_for(spec(TEMPLATE.replace("seconds: 1", "seconds: 1, name: a-pause")).steps[0])
    assert (task.name, task.task_run_name) == ("wait", "a-pause")
    assert (task.persist_result, task.retries) == (False, 0)


def test_short_retries_happen_in_place_with_longer_and_longer_pauses() -> None:
    task = task_for(spec(TEMPLATE.replace("seconds: 1", "seconds: 1, retries: 5, retry_delay_seconds: 4")).steps[0])
    assert (task.retries, task.retry_delay_seconds) == (5, [4, 8, 16, 30, 30])


def test_long_retries_do_not_hold_the_slot() -> None:
    task = task_for(spec(TEMPLATE.replace("seconds: 1", "seconds: 1, retries: 5, retry_delay_seconds: 31")).steps[0])
    assert task.retries == 0
