from __future__ import annotations

from typing import Any

import pytest

from ai_task_orchestra.errors import ParameterError
from api.plain_data import problem, refuse_programs

PROGRAM = {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([1, {"a": PROGRAM}], "__prefect_kind"),
        ("a\0b", "NUL"),
        ({"a\0": 1}, "NUL"),
        (["\ud800"], "surrogate"),
        (2**63, "64 bits"),
        ([-(2**63) - 1], "64 bits"),
        (float("inf"), "finite"),
        ({"a": [float("nan")]}, "finite"),
        ([[[[]]]], "deeper than 3"),
    ],
)
def test_what_prefect_would_not_keep_as_it_is_is_said(value: Any, word: str) -> None:
    assert word in (problem(value, max_nesting=3) or "")


@pytest.mark.parametrize("value", [None, True, 2**63 - 1, 1e308, "é😀", {"a": [["deep", None]]}, [], {}])
def test_plain_data_is_no_problem(value: Any) -> None:
    assert problem(value, max_nesting=3) is None


def test_programs_are_refused_by_the_parameters_name() -> None:
    with pytest.raises(ParameterError) as refused:
        refuse_programs({"x": [PROGRAM], "y": 1, "__prefect_kind": "jinja"})
    assert list(refused.value.problems) == ["x", "__prefect_kind"]
    refuse_programs({"x": ["__prefect_kind"], "y": {"prefect_kind": 1}})
