"""Text from outside (processes, files, servers) made fit for JSON, PostgreSQL and people."""

from __future__ import annotations

import codecs
import re
from typing import Final

_UTF8: Final = codecs.getincrementaldecoder("utf-8")
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_CREDENTIALS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*@")
_UNPRINTABLE: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def storable(text: str) -> str:
    """NUL, which PostgreSQL refuses, and halves of surrogate pairs become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def decoded(data: bytes, limit_bytes: int, *, complete: bool = True) -> tuple[str, bool]:
    """UTF-8 as storable text of at most `limit_bytes` bytes, and whether it had to be cut for that.

    Bytes that are no UTF-8 become U+FFFD, which makes the text longer than the bytes were. Without `complete` the data
    may end in the middle of a character, which is left out.
    """
    text = storable(_UTF8("replace").decode(data, final=complete))
    encoded = text.encode()
    if len(encoded) <= limit_bytes:
        return text, False
    return encoded[:limit_bytes].decode("utf-8", "ignore"), True


def without_credentials(text: str) -> str:
    """`user:password@` in URLs replaced."""
    return _CREDENTIALS.sub(r"\1***@", text)


def last_line(text: str, limit: int = 300) -> str:
    """The last line with something in it, without control sequences, at most `limit` characters."""
    lines = (_UNPRINTABLE.sub("", storable(line)).strip() for line in reversed(text.splitlines()))
    line = next((line for line in lines if line), "")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
