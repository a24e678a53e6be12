from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError
from api.strict_json import INTEGERS, parse

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INTEGERS.start, INTEGERS[-1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), inner)
    ),
    max_leaves=30,
)


def refusal(body: bytes, max_nesting: int = 64) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        parse(body, max_nesting=max_nesting)
    return caught.value.status, caught.value.code


@given(JSON, st.booleans())
def test_what_json_can_say_is_read_as_it_was_meant(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse(body, max_nesting=64) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_never_more(body: bytes) -> None:
    try:
        parse(body, max_nesting=64)
    except ApiError as refused:
        assert refused.status in (400, 422)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":1} x',
        b"[1 2]",
        b'"\xff"',
        b'"tab\there"',
        b'"\x00"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        b'"\xed\xa0\x80"',
        b"01",
        b"+1",
        b"1.",
        b"tru",
        b'"\\x"',
        b'"\\u12"',
        b'"' + b'\\"' * 100_000,
    ],
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    assert refusal(body) == (400, "malformed_json")


@pytest.mark.parametrize("body", [b'{"a":1,"a":1}', b'[{"b":{"a":1,"\\u0061":2}}]'])
def test_an_object_has_each_name_once(body: bytes) -> None:
    assert refusal(body) == (400, "duplicate_key")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "[1E400]", '{"x":NaN}'])
def test_numbers_are_finite(number: str) -> None:
    assert refusal(number.encode()) == (400, "non_finite_number")


@pytest.mark.parametrize(
    "digits", [str(2**63), str(-(2**63) - 1), "1" * 400, "-" + "1" * 5000], ids=["over", "under", "400", "5000"]
)
def test_integers_fit_64_bits(digits: str) -> None:
    assert refusal(f"[{digits}]".encode()) == (422, "out_of_range")


def test_the_outermost_integers_are_kept_exactly() -> None:
    assert parse(f"[{2**63 - 1},{-(2**63)}]".encode(), max_nesting=64) == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("text", [r'"\ud800"', r'["\udfff x"]', r'{"\ud83d":1}', r'"\u0000"', r'{"a":["x\u0000y"]}'])
def test_text_that_can_not_be_stored_is_refused(text: str) -> None:
    assert refusal(text.encode()) == (422, "invalid_text")


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse(rb'"\ud83d\ude00"', max_nesting=64) == "😀"


@pytest.mark.parametrize("depth", [65, 300, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_limited(depth: int, opening: str, closing: str) -> None:
    body = opening * depth + "1" + closing * depth
    assert refusal(body.encode()) == (422, "too_deep")


def test_nesting_up_to_the_limit_and_any_width_are_fine() -> None:
    assert parse(b"[" * 64 + b"]" * 64, max_nesting=64)
    assert len(parse(b"[" + b"[],{}," * 1000 + b"[]]", max_nesting=2)) == 2001
    assert refusal(b"[[[]]]", max_nesting=2) == (422, "too_deep")
