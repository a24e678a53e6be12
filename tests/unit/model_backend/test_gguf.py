from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai_task_orchestra.model_backend.gguf import GgufError, read_header

Read = Callable[[bytes], dict[str, Any]]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def header(*pairs: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + b"".join(pairs)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def _read(data: bytes) -> dict[str, Any]:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return read_header(path)

    return _read


def test_every_kind_of_value_is_read(read: Read) -> None:
    data = header(
        pair("general.architecture", 8, text("llama")),
        pair("count", 4, struct.pack("<I", 8192)),
        pair("small", 1, struct.pack("<b", -5)),
        pair("rate", 6, struct.pack("<f", 0.5)),
        pair("yes", 7, b"\x01"),
        pair("numbers", 9, array(5, [struct.pack("<i", number) for number in (1, -2)])),
        pair("words", 9, array(8, [text("a"), text("ü")])),
        pair("nested", 9, array(9, [array(0, [b"\x07"])])),
    )
    assert read(data) == {
        "general.architecture": "llama",
        "count": 8192,
        "small": -5,
        "rate": 0.5,
        "yes": True,
        "numbers": [1, -2],
        "words": ["a", "ü"],
        "nested": [[7]],
    }


def test_long_lists_are_skipped_and_what_follows_is_read(read: Read) -> None:
    data = header(
        pair("tokens", 9, array(8, [text(f"token{number}") for number in range(100)])),
        pair("scores", 9, array(6, [struct.pack("<f", 1.0)] * 100)),
        pair("after", 0, b"\x2a"),
    )
    assert read(data) == {"tokens": None, "scores": None, "after": 42}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (header(version=1), "version 1"),
        (header(pair("a", 99, b"")), "unknown value type 99"),
        (header(pair("a", 8, struct.pack("<Q", 2**63))), "cut short"),
        (header(pair("a", 8, text("whole")))[:-2], "cut short"),
        (header(pair("a", 9, struct.pack("<IQ", 0, 2**62))), "cut short"),
        (header(pair("a", 9, array(9, [array(9, [array(9, [array(9, [array(9, [])])])])]))), "nested too deeply"),
    ],
)
def test_a_damaged_header_is_an_error(read: Read, data: bytes, says: str) -> None:
    with pytest.raises(GgufError, match=says):
        read(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=80), cut=st.integers(0, 120), at=st.integers(0, 60))
def test_no_bytes_do_anything_worse_than_a_gguf_error(read: Read, noise: bytes, cut: int, at: int) -> None:
    good = header(pair("words", 9, array(8, [text("a")] * 3)), pair("n", 4, struct.pack("<I", 1)))
    with contextlib.suppress(GgufError):
        read((good[:at] + noise + good[at:])[:cut])
