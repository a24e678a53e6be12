from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.expressions import ABSENT, ExpressionError, Placeholder, parse, render, sole_placeholder

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def rendered(value: Any, parameters: dict[str, Any] | None = None, steps: dict[str, Any] | None = None) -> Any:
    return render(value, parameters=parameters or {}, steps=steps or {})


@given(JSON_VALUES)
def test_one_placeholder_keeps_the_value_and_its_type(value: Any) -> None:
    assert rendered("{{ x }}", {"x": value}) is value
    assert rendered("{{x}}", {"x": value}) is value
    assert rendered("{{ steps.a-b.out }}", steps={"a-b": {"out": value}}) is value


@pytest.mark.parametrize(
    "value", ["{{ other }}", "{{{{x}}}}", "{{ steps.a.output }}", "a {{ x }} b", "{{", "}}", "{% for %}", "${x}"]
)
def test_a_value_is_data_and_never_rendered_again(value: str) -> None:
    parameters = {"x": value, "other": "SECRET"}
    steps = {"a": {"output": "SECRET"}}
    assert rendered("{{ x }}", parameters, steps) == value
    assert rendered("<{{ x }}>", parameters, steps) == f"<{value}>"
    assert rendered("{{ steps.b.output }}", {}, {"b": {"output": value}}) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        (3, "3"),
        (2.5, "2.5"),
        ([1, "ä"], '[1, "ä"]'),
        ({"a": False}, '{"a": false}'),
        ("as it is", "as it is"),
    ],
)
def test_inside_a_longer_string_a_value_becomes_text(value: Any, text: str) -> None:
    assert rendered("<{{ x }}>", {"x": value}) == f"<{text}>"


def test_an_absent_value_drops_its_field_and_its_list_item_and_is_empty_inside_a_text() -> None:
    value = {"keep": 1, "drop": "{{ x }}", "list": ["a", "{{ x }}", "b"], "deep": {"drop": "{{ steps.s.out }}"}}
    assert rendered(value) == {"keep": 1, "list": ["a", "b"], "deep": {}}
    assert rendered("a{{ x }}b") == "ab"
    assert rendered("{{ x }}") is ABSENT


def test_null_is_a_value_and_not_absent() -> None:
    assert rendered({"a": "{{ x }}"}, {"x": None}) == {"a": None}


@pytest.mark.parametrize("text", ['{"a": {"b": 1}}', "}} {", "{ x }", "a}}b", "{", ""])
def test_braces_that_are_no_placeholder_are_ordinary_text(text: str) -> None:
    assert rendered(text) == text


def test_a_placeholder_may_stand_inside_json_text() -> None:
    assert json.loads(rendered('{"a": {{x}}}', {"x": 5})) == {"a": 5}


@pytest.mark.parametrize(
    "text",
    [
        "{{ }}",
        "{{ a.b }}",
        "{{ x | upper }}",
        "{{ ''.__class__ }}",
        '{{ x|attr("format") }}',
        "{{ f() }}",
        "{{ x",
        "{{ x }",
        "{{{{ x }}}}",
        "{{ steps.a }}",
        "{{ steps.a.b.c }}",
        "{{ steps..b }}",
        "{{ 1x }}",
        "{{ x y }}",
        "{{ x }} and {{ y.z }}",
        "{{ 'a' }}",
        "{{ ä }}",
    ],
)
def test_anything_else_in_double_braces_is_an_error(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


def test_a_long_mistake_is_shown_shortened() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse("{{ " + "x " * 5000 + "}}")
    assert len(str(caught.value)) < 200


@given(st.text())
def test_any_text_either_parses_or_is_an_expression_error(text: str) -> None:
    try:
        parts = parse(text)
    except ExpressionError:
        return
    assert all(isinstance(part, str | Placeholder) for part in parts)


def test_only_a_string_of_one_placeholder_is_one() -> None:
    assert sole_placeholder("{{ x }}") == Placeholder("x")
    assert sole_placeholder("{{ steps.a.b }}") == Placeholder("b", step="a")
    assert [sole_placeholder(v) for v in (" {{ x }}", "{{x}}{{y}}", "x", "", 5, None, ["{{ x }}"])] == [None] * 7
