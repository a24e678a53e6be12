from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import ResultReferenceError
from ai_task_orchestra.template import TemplateSpec, parse_template
from api.references import Budget, Reference, check, pick, references, substitute, tasks_referred_to

SPEC = """
name: all-kinds
description: One of each
parameters:
  - {name: text, type: string, required: true, description: A text}
  - {name: count, type: integer, required: false, minimum: 3, description: A count}
  - {name: items, type: array, required: false, description: Some}
  - {name: options, type: object, required: false, description: Named}
steps:
  - type: wait
    seconds: 0
"""


@pytest.fixture(scope="module")
def spec() -> TemplateSpec:
    return parse_template(SPEC, Path("all-kinds.yaml"))


def test_references_are_found_anywhere_inside_a_value_and_texts_are_not_looked_into() -> None:
    value = {
        "a": [1, {"$result": "x"}, [{"deep": {"$result": "y", "path": "files.0.name"}}]],
        "b": '{"$result": "no"}',
        "c": "{{ steps.draft.output }} $result",
        "$results": {"path": "output"},
        "path": "output",
        "d": ["$result"],
    }
    assert list(references(value)) == [Reference("x"), Reference("y", "files.0.name")]
    assert list(references("$result")) == []


def test_what_is_inside_a_reference_is_no_other_reference() -> None:
    with pytest.raises(ValueError, match=r"\$result"):
        list(references({"$result": {"$result": "x"}}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"$result": 5},
        {"$result": None},
        {"$result": ""},
        {"$result": "x" * 201},
        {"$result": "x", "pth": "output"},
        {"$result": "x", "path": 0},
        {"$result": "x", "path": None},
        {"$result": "x", "path": "a..b"},
        {"$result": "x", "path": "."},
        {"$result": "x", "path": "a" * 1001},
    ],
)
def test_an_object_with_the_key_is_a_reference_or_wrong(spec: TemplateSpec, wrong: dict[str, Any]) -> None:
    for parameters in ({"text": wrong}, {"text": "t", "items": [{"$result": "fine"}, wrong]}):
        found = check(spec, parameters)
        assert not found.valid
        assert list(found.errors) == [list(parameters)[-1]]
        assert found.missing == []


def test_a_reference_counts_as_a_value_that_fits(spec: TemplateSpec) -> None:
    assert check(spec, {"text": {"$result": "x"}, "count": {"$result": "x", "path": "n"}}).valid
    assert check(spec, {"text": "t", "items": [{"$result": "x"}], "options": {"a": {"$result": "x"}}}).valid


def test_what_can_be_known_before_the_results_is_checked(spec: TemplateSpec) -> None:
    reference = {"$result": "x"}
    found = check(spec, {"items": {"a": reference}, "options": [reference], "more": reference, "count": 1})
    assert found.missing == ["text"]
    assert found.invalid == ["count", "items", "more", "options"]
    assert found.errors["items"] == "must be an array, not an object"
    assert "at least 3" in found.errors["count"]
    assert "no parameter" in found.errors["more"]


def test_tasks_are_listed_once_with_the_first_parameter_that_refers_to_them() -> None:
    parameters = {"a": [{"$result": "x"}, {"$result": "y"}], "b": {"$result": "x", "path": "n"}}
    assert tasks_referred_to(parameters) == {"x": "a", "y": "a"}


RESULT = {"output": "text", "list": [[1, {"n": None}], "last"], "0": {"1": True}, "empty": {}}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("output", "text"),
        ("list.0.0", 1),
        ("list.0.1.n", None),
        ("list.1", "last"),
        ("list.01", "last"),
        ("0.1", True),
        ("empty", {}),
        ("", RESULT),
    ],
)
def test_a_path_goes_through_names_and_list_indices(path: str, part: Any) -> None:
    assert pick(RESULT, path) == part


@pytest.mark.parametrize(
    "path",
    ["nothing", "output.length", "output.0", "list.2", "list.-1", "list.x", "list.²", "list." + "9" * 900, "empty.a"],
)
def test_a_path_that_leads_nowhere_is_a_lookup_error(path: str) -> None:
    with pytest.raises(LookupError):
        pick(RESULT, path)


def test_parts_take_the_places_of_references_with_their_types() -> None:
    given = {"a": {"$result": "x"}, "b": [{"$result": "x", "path": ""}, "t"], "c": {"d": {"$result": "y"}}}
    values = {Reference("x"): 5, Reference("x", ""): {"output": 5}, Reference("y"): {"$result": "data"}}
    assert substitute(given, values) == {"a": 5, "b": [{"output": 5}, "t"], "c": {"d": {"$result": "data"}}}
    assert given["a"] == {"$result": "x"}


def test_a_budget_is_spent_once() -> None:
    budget = Budget(10)
    budget.spend(4)
    budget.spend(6)
    with pytest.raises(ResultReferenceError, match="larger than 10 bytes"):
        budget.spend(1)
