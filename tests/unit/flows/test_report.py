from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.errors import ParameterError, ScriptError, StepError
from flows.report import (
    MAX_ANSWER_CHARACTERS,
    MAX_MESSAGE_CHARACTERS,
    MAX_RESULT_BYTES,
    ResultTooLargeError,
    answer_markdown,
    bounded_message,
    error_report,
    storable,
)


def step_error(message: str) -> StepError:
    error = ScriptError(message, exit_code=1)
    error.step = "run"
    return error


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"a": "x\0y", "b\0": 1}, {"a": "x\ufffdy", "b\ufffd": 1}),
        (["\ud800", "\U0001f600"], ["\ufffd", "\U0001f600"]),
        ([math.nan, math.inf, 1.5], [None, None, 1.5]),
        ({"a": 2**63, "b": -(2**63)}, {"a": "9223372036854775808", "b": -(2**63)}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ("\\u0000", "\\u0000"),
    ],
)
def test_what_can_not_be_stored_is_replaced(value: Any, stored: Any) -> None:
    assert json.loads(json.dumps(storable(value))) == stored


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)))
def test_whatever_a_step_outputs_becomes_json_that_postgresql_takes(value: Any) -> None:
    text = json.dumps(storable(value), allow_nan=False, ensure_ascii=False)
    assert "\0" not in text
    text.encode()
    assert "\\u0000" not in json.dumps(storable(value)).replace("\\\\", "")


def test_ordinary_values_are_passed_on_without_a_copy() -> None:
    value = {"output": "ä" * 10, "list": [1, 2.5, None, True]}
    assert storable(value) is value


def test_a_result_that_is_too_large_is_an_error() -> None:
    with pytest.raises(ResultTooLargeError):
        storable({"output": "x" * MAX_RESULT_BYTES})


def test_something_that_is_no_json_is_an_error() -> None:
    with pytest.raises(TypeError):
        storable({"output": object()})


def test_a_states_message_names_step_and_reason_and_stays_short() -> None:
    assert bounded_message(step_error("script a.py ended with 3")) == "step 'run': script a.py ended with 3"
    assert bounded_message(ParameterError({"n": "is missing"})) == "n: is missing"
    assert len(bounded_message(step_error("x" * 10_000))) == MAX_MESSAGE_CHARACTERS
    assert bounded_message(step_error("a\0b\ud800")) == "step 'run': a\ufffdb\ufffd"


def test_the_reported_error_has_type_message_and_step() -> None:
    report = error_report(step_error("it ended with 3"))
    assert report == {"type": "script_failed", "message": "it ended with 3", "step": "run"}
    assert error_report(ParameterError({"n": "is missing"})) == {
        "type": "invalid_parameters",
        "message": "n: is missing",
    }


@given(st.lists(st.sampled_from(["`", "```", "````", "~~~", "\n", " ", "a", "<b>", "[x](http://y)", "![]()"])))
def test_no_text_escapes_from_its_fence(pieces: list[str]) -> None:
    lines = answer_markdown({"output": "".join(pieces)}, {}).split("\n")
    fence = lines[0].removesuffix("text")
    assert set(fence) == {"`"}
    assert lines[-1] == fence
    assert not any(line.strip().startswith(fence) for line in lines[1:-1])


def test_the_answer_shows_output_other_fields_and_usage() -> None:
    markdown = answer_markdown({"output": {"a": 1}, "files": ["x"]}, {"memory_used_gb": 0.1})
    assert markdown.index('"a": 1') < markdown.index('"files"') < markdown.index('"memory_used_gb"')
    assert answer_markdown({}, {}) == "(no result)"


def test_a_long_answer_is_cut_for_people() -> None:
    markdown = answer_markdown({"output": "x" * (MAX_ANSWER_CHARACTERS * 2)}, {})
    assert len(markdown) < MAX_ANSWER_CHARACTERS + 200
    assert f"({MAX_ANSWER_CHARACTERS * 2} characters in all)" in markdown
