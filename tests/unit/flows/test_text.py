"""Text from outside, made fit to be stored and shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.text import decoded, last_line, storable, without_credentials


def test_nul_and_half_surrogates_are_replaced() -> None:
    assert storable("a\x00b\ud800c😀") == "a\ufffdb\ufffdc😀"


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(min_value=0, max_value=220), st.booleans())
def test_any_bytes_become_storable_text_within_the_limit(data: bytes, limit: int, complete: bool) -> None:
    text, cut = decoded(data, limit, complete=complete)

    assert storable(text) == text
    assert len(text.encode()) <= limit
    if not cut and complete:
        assert text == storable(data.decode("utf-8", "replace"))


def test_a_character_cut_in_the_middle_is_left_out() -> None:
    assert decoded("aä".encode()[:2], 10, complete=False) == ("a", False)
    assert decoded("aä".encode()[:2], 10) == ("a\ufffd", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("one\ntwo\n\n  \n", "two"),
        ("\x1b[31mred\x1b[0m\x07", "red"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_the_last_line_is_short_and_has_no_control_sequences(text: str, expected: str) -> None:
    assert last_line(text) == expected


def test_credentials_in_urls_are_replaced() -> None:
    text = "fatal: https://user:secret@host/x and https://host/y@z"

    assert without_credentials(text) == "fatal: https://***@host/x and https://host/y@z"
