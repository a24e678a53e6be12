"""What an API key looks like: made once, shown once, stored only as a hash.

A key is `ato_`, 22 random letters and digits (130 bits), and 6 more that are a checksum of the rest, so that a key cut
off while copying is told apart from one that was revoked, without asking the database.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from typing import Final

PREFIX: Final = "ato_"
RANDOM_LENGTH: Final = 22
CHECKSUM_LENGTH: Final = 6
KEY_LENGTH: Final = len(PREFIX) + RANDOM_LENGTH + CHECKSUM_LENGTH
SHOWN_LENGTH: Final = 8
ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase

_SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}", re.ASCII)


def generate_key() -> str:
    """A new key. Only its owner should ever see it: store `key_hash()` and `shown_part()`."""
    head = PREFIX + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_LENGTH))
    return head + _checksum(head)


def key_hash(key: str) -> str:
    """SHA-256 in hexadecimal. A key has too much chance in it to be guessed, so a slow hash would gain nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def looks_like_key(text: str) -> bool:
    """Whether `text` has a generated key's shape and a checksum that fits. Says nothing about whether it is valid."""
    if _SHAPE.fullmatch(text) is None:
        return False
    return secrets.compare_digest(_checksum(text[:-CHECKSUM_LENGTH]), text[-CHECKSUM_LENGTH:])


def shown_part(key: str) -> str:
    """The beginning of a key by which a person may recognise it in a list (24 of its 130 bits)."""
    return key[:SHOWN_LENGTH]


def _checksum(text: str) -> str:
    rest = zlib.crc32(text.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
