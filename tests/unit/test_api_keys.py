from __future__ import annotations

import re

import pytest

from ai_task_orchestra.api_keys import generate_key, key_hash, looks_like_key, shown_part


def test_a_generated_key_is_recognised() -> None:
    key = generate_key()
    assert re.fullmatch(r"ato_[0-9A-Za-z]{28}", key)
    assert looks_like_key(key)


def test_no_key_comes_twice() -> None:
    assert len({generate_key() for _ in range(500)}) == 500


@pytest.mark.parametrize("place", range(4, 32))
def test_any_changed_character_is_noticed(place: int) -> None:
    key = generate_key()
    other = "a" if key[place] != "a" else "b"
    assert not looks_like_key(key[:place] + other + key[place + 1 :])


@pytest.mark.parametrize("text", ["", "ato_", "ato_short", "sk_" + "a" * 29, "ato_" + "ä" * 28])
def test_other_text_is_no_key(text: str) -> None:
    assert not looks_like_key(text)


def test_a_key_cut_off_or_with_a_line_end_is_no_key() -> None:
    key = generate_key()
    assert not looks_like_key(key[:-1])
    assert not looks_like_key(key + "\n")


def test_the_hash_is_stable_and_tells_keys_apart() -> None:
    key = generate_key()
    assert key_hash(key) == key_hash(key)
    assert re.fullmatch(r"[0-9a-f]{64}", key_hash(key))
    assert key_hash(key) != key_hash(generate_key())


def test_the_shown_part_is_a_small_piece_of_the_key() -> None:
    key = generate_key()
    assert key.startswith(shown_part(key))
    assert len(shown_part(key)) == 8
