from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.errors import TemplateError
from ai_task_orchestra.template_yaml import MAX_BYTES, read_yaml

PATH = Path("t.yaml")


def plain(text: str) -> Any:
    return read_yaml(text, PATH).plain()


def problem(text: str) -> TemplateError:
    with pytest.raises(TemplateError) as caught:
        read_yaml(text, PATH)
    assert caught.value.path == PATH
    return caught.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-7", -7),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("9223372036854775807", 2**63 - 1),
        *((word, word) for word in ("on", "off", "yes", "no", "Yes", "True", "NULL", "y", "n")),
        *((word, word) for word in ("0755", "0x1F", "0o17", "1_000", "12:30", "2024-01-31", ".inf", ".nan", "1e999")),
        *((word, word) for word in ("9223372036854775808", "=", "007", "1.", ".5")),
        ("'true'", "true"),
        ('"5"', "5"),
    ],
)
def test_plain_scalars_are_read_as_json_and_all_else_is_text(written: str, value: Any) -> None:
    found = plain(f"a: {written}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_block_scalars_are_text() -> None:
    assert plain("a: |\n  5\nb: >\n  x\n  y\n") == {"a": "5\n", "b": "x y\n"}


def test_lines_of_fields_and_items_are_known() -> None:
    document = read_yaml("a: 1\nb:\n  - x: 1\n    y:\n      z\n  - 2\n", PATH)
    assert document.line_of(("a",)) == 1
    assert document.line_of(("b", 0, "y")) == 4
    assert document.line_of(("b", 1)) == 6
    assert document.line_of(("b", 0, "missing", "deeper")) == 3


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: &x 2\nc: *x", 2, "anchors"),
        ("a: 1\nc: *x", 2, "anchors"),
        ("a: &x [1]\n", 1, "anchors"),
        ("<<: {a: 1}", 1, "merge keys"),
        ("a: !!python/object/apply:os.system [id]", 1, "tags"),
        ("a: 1\nb: !!binary aGk=", 2, "tags"),
        ("a: !own 1", 1, "tags"),
        ("a: 1\nb: 2\na: 3", 3, "'a' occurs twice (first in line 1)"),
        ("a: 1\n---\nb: 2", 2, "only one document"),
        ("", 1, "empty"),
        ("# only a remark\n", 1, "empty"),
        ("a: [1, 2\nb: 3", 2, "not YAML"),
        ("a: 1\n b: 2", 2, "not YAML"),
        ("? [1, 2]\n: 3", 1, "must be text"),
        ("1: 2", 1, "must be text"),
        ("true: 2", 1, "must be text"),
        ('a: "\\0"', 1, "NUL"),
    ],
)
def test_what_is_not_possible_is_refused_with_its_line(text: str, line: int, reason: str) -> None:
    error = problem(text)
    assert reason in error.reason
    assert error.line == line


def test_a_file_of_aliases_that_would_unfold_into_gigabytes_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    began = time.monotonic()
    problem("\n".join(lines))
    assert time.monotonic() - began < 1


def test_deep_nesting_is_refused() -> None:
    assert "deeper than 64" in problem("[" * 100 + "]" * 100).reason
    assert "deeper than 64" in problem("[" * 500_000).reason


def test_a_file_larger_than_the_limit_is_refused() -> None:
    assert "larger than" in problem("a: " + "x" * MAX_BYTES).reason


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#% \n\t,?0.~é\0\x07\ud800\u2028"), max_size=60))
def test_any_text_is_read_or_is_a_template_error(text: str) -> None:
    try:
        read_yaml(text, PATH)
    except TemplateError as exc:
        assert exc.path == PATH
