from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from ai_task_orchestra.parameter import ParameterSpec


def parameter(**fields: Any) -> ParameterSpec:
    return ParameterSpec.model_validate({"name": "p", "type": "string", "description": "A parameter", **fields})


VALUES: dict[str, Any] = {
    "string": "x",
    "integer": 3,
    "number": 2.5,
    "boolean": True,
    "array": [1],
    "object": {"a": 1},
}


@pytest.mark.parametrize("declared", VALUES)
@pytest.mark.parametrize("given", VALUES)
def test_each_type_takes_its_own_values_only_and_an_integer_is_a_number(declared: str, given: str) -> None:
    fits = declared == given or (declared, given) == ("number", "integer")
    assert (parameter(type=declared).problem(VALUES[given]) is None) == fits


@pytest.mark.parametrize("declared", VALUES)
def test_null_is_no_value_of_any_type(declared: str) -> None:
    assert parameter(type=declared).problem(None) is not None


def test_true_is_no_integer_and_three_point_zero_is_none_either() -> None:
    assert parameter(type="integer").problem(True) == "must be an integer, not a boolean"
    assert parameter(type="integer").problem(3.0) == "must be an integer, not a number"
    assert parameter(type="number").problem(False) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, -(2**63) - 1])
def test_numbers_that_can_not_be_stored_are_refused(value: Any) -> None:
    assert parameter(type="number").problem(value) is not None


def test_bounds_include_their_ends() -> None:
    bounded = parameter(type="integer", minimum=1, maximum=3)
    assert [bounded.problem(value) for value in (1, 3)] == [None, None]
    assert bounded.problem(0) == "must be at least 1"
    assert bounded.problem(4) == "must be at most 3"


def test_only_listed_values_fit_and_true_is_not_one() -> None:
    assert parameter(enum=["a", "b"]).problem("b") is None
    assert parameter(enum=["a", "b"]).problem("c") == 'must be one of "a", "b"'
    assert parameter(type="number", enum=[1, 2.5]).problem(1.0) is None
    assert parameter(type="integer", enum=[1]).problem(True) is not None


def test_a_pattern_is_searched_for_as_in_json_schema() -> None:
    assert parameter(pattern="b+").problem("abbc") is None
    assert parameter(pattern="^b+$").problem("abbc") == "must match the pattern ^b+$"


def test_a_pattern_that_explodes_elsewhere_takes_no_time_here() -> None:
    evil = parameter(pattern="^(a+)+$")
    began = time.monotonic()
    assert evil.problem("a" * 50_000 + "!") is not None
    assert time.monotonic() - began < 1


def test_a_reason_never_repeats_the_value() -> None:
    for declared in (parameter(enum=["a"]), parameter(pattern="^x$"), parameter(type="integer", maximum=1)):
        for value in ("s3cret", 53219, {"s3cret": 1}, ["s3cret"]):
            assert "s3cret" not in (declared.problem(value) or "")
            assert "53219" not in (declared.problem(value) or "")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "a-b"}, "pattern"),
        ({"name": "1a"}, "pattern"),
        ({"name": "_a"}, "pattern"),
        ({"name": "class"}, "reserved"),
        ({"name": "wait_for"}, "reserved"),
        ({"type": "text"}, "Input should be"),
        ({"type": "string", "minimum": 1}, "only integers and numbers have a minimum"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum is larger"),
        ({"type": "integer", "pattern": "a"}, "only strings have a pattern"),
        ({"required": True, "default": "x"}, "a required parameter has no default"),
        ({"required": False, "default": 5}, "default must be a string"),
        ({"required": False, "default": "c", "enum": ["a"]}, "default must be one of"),
        ({"enum": []}, "at least 1 item"),
        ({"enum": ["a", 1]}, "enum: each value must be a string"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "(?=a)b"}, "no regular expression"),
        ({"pattern": "[[:alpha:]]"}, "no regular expression"),
        ({"required": "yes"}, "boolean"),
        ({"minlength": 3}, "not permitted"),
    ],
)
def test_a_contradictory_declaration_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parameter(**fields)
    assert reason in str(caught.value)


def test_a_parameter_is_required_unless_it_says_otherwise_or_has_a_default() -> None:
    assert parameter().required
    assert not parameter(default="x").required
    assert not parameter(required=False).required


def test_the_api_shows_the_four_fields_and_those_that_are_set() -> None:
    assert parameter().as_api() == {"name": "p", "type": "string", "required": True, "description": "A parameter"}
    assert list(parameter().as_api()) == ["name", "type", "required", "description"]
    shown = parameter(type="integer", default=0, minimum=0, maximum=5, enum=[0, 1]).as_api()
    assert shown | {"default": 0, "minimum": 0, "maximum": 5, "enum": [0, 1]} == shown
