"""The header of a GGUF file, without loading the model."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

LONG_LIST = 64
"""Longer lists (the vocabulary) are skipped and read as None, as Ollama's `show` prints them."""

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_NESTING = 4

# llama.cpp's enum of file types; the numbers left out are retired.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
}  # fmt: skip


class GgufError(ValueError):
    """The file is no GGUF file, or its header is damaged."""


def read_header(path: Path) -> dict[str, Any]:
    """The key-value pairs of a GGUF file (versions 2 and 3, little-endian).

    Raises:
        GgufError: it is not one.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path.stat().st_size)
        if reader.take(4) != _MAGIC:
            raise GgufError("not a GGUF file")
        version = reader.number("I")
        if version not in (2, 3):
            raise GgufError(f"GGUF version {version} is not supported")
        reader.number("Q")  # how many tensors
        pairs = reader.number("Q")
        header: dict[str, Any] = {}
        for _ in range(pairs):
            name = reader.string()
            header[name] = reader.value(reader.number("I"))
        return header


class _Reader:
    """Reads the file's primitives; a size that points beyond the file is an error, never an allocation."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def take(self, count: int) -> bytes:
        self._claim(count)
        data = self._file.read(count)
        if len(data) != count:
            raise GgufError("the header is cut short")
        return data

    def skip(self, count: int) -> None:
        self._claim(count)
        self._file.seek(count, 1)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(depth + 1)
        if kind not in _NUMBERS:
            raise GgufError(f"unknown value type {kind}")
        return self.number(_NUMBERS[kind])

    def _array(self, depth: int) -> list[Any] | None:
        if depth > _MAX_NESTING:
            raise GgufError("lists are nested too deeply")
        kind, count = self.number("I"), self.number("Q")
        if count <= LONG_LIST:
            return [self.value(kind, depth) for _ in range(count)]
        if kind in _NUMBERS:
            self.skip(count * struct.calcsize(f"<{_NUMBERS[kind]}"))
        elif kind == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            for _ in range(count):
                self.value(kind, depth)
        return None

    def _claim(self, count: int) -> None:
        if count > self._left:
            raise GgufError("the header is cut short")
        self._left -= count
