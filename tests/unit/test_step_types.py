from __future__ import annotations

from typing import Any

import pytest

from ai_task_orchestra.step_types import STEP_TYPES, FieldSpec, kind_of
from ai_task_orchestra.template import COMMON_STEP_KEYS
from flows.steps import STEPS

# The contract's table: the fields of each type, required ones first, and its output fields.
CONTRACT: dict[str, tuple[set[str], set[str], set[str]]] = {
    "ollama_generate": ({"model", "prompt"}, {"system", "format", "options", "keep_alive", "images"}, {"output"}),
    "ollama_chat": ({"model", "messages"}, {"format", "options", "keep_alive", "tools"}, {"output", "message"}),
    "ollama_embed": ({"model", "input"}, {"options", "keep_alive"}, {"embeddings"}),
    "ollama_analyze": ({"model"}, {"prompt", "max_tokens", "content"}, {"output"}),
    "git_clone": ({"repo"}, {"branch"}, {"path", "commit"}),
    "execute_script": ({"script"}, {"args", "env"}, {"output", "stderr", "exit_code"}),
    "run_command": ({"command"}, {"env"}, {"output", "stderr", "exit_code"}),
    "store_result": ({"path"}, {"content"}, {"path", "bytes"}),
    "read_files": ({"files"}, set(), {"files", "content"}),
    "format_output": ({"format"}, {"content"}, {"output"}),
    "http_request": ({"url"}, {"method", "headers", "json"}, {"status", "output"}),
    "wait": ({"seconds"}, set(), set()),
}


def test_the_catalogue_and_the_implementations_have_the_same_types() -> None:
    assert set(STEP_TYPES) == set(CONTRACT) == set(STEPS)
    assert {name: step.type for name, step in STEPS.items()} == {name: name for name in STEPS}


@pytest.mark.parametrize("name", CONTRACT)
def test_each_type_has_the_promised_fields_and_outputs(name: str) -> None:
    required, optional, outputs = CONTRACT[name]
    step_type = STEP_TYPES[name]
    assert {field for field, spec in step_type.fields.items() if spec.required} == required
    assert {field for field, spec in step_type.fields.items() if not spec.required} >= optional
    assert set(step_type.outputs) >= outputs


def test_no_field_of_a_type_has_the_name_of_what_every_step_may_have() -> None:
    for step_type in STEP_TYPES.values():
        assert not step_type.fields.keys() & COMMON_STEP_KEYS


def test_types_with_a_default_content_are_the_promised_ones() -> None:
    assert {name for name, each in STEP_TYPES.items() if each.content_default} == {
        "ollama_analyze",
        "store_result",
        "format_output",
    }


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "boolean"),
        (1, "integer"),
        (1.0, "number"),
        ("x", "string"),
        ([], "array"),
        ((), "array"),
        ({}, "object"),
        (None, None),
        (object(), None),
    ],
)
def test_values_have_jsons_kinds(value: Any, kind: str | None) -> None:
    assert kind_of(value) == kind


def test_an_integer_is_a_number_and_a_number_is_no_integer() -> None:
    assert FieldSpec(("number",)).fits(1)
    assert not FieldSpec(("integer",)).fits(1.0)
    assert not FieldSpec(("integer", "number")).fits(True)
