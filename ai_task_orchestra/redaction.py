"""Secrets taken out of text before it goes anywhere: log lines, errors, outputs of programs.

Two kinds are found: what looks like a secret (generated API keys, passwords in addresses), and what is one: the values
of our own environment whose names say so, and whatever was `remember`ed. The second kind is taken out of a program's
output, too: no template and no script has a use for it.
"""

from __future__ import annotations

import base64
import functools
import os
import re
from typing import Final
from urllib.parse import quote, unquote, urlsplit

HIDDEN: Final = "***"
_SHAPES: Final = (
    (re.compile(r"\bato_[0-9A-Za-z]{8,}"), f"ato_{HIDDEN}"),
    (re.compile(r"(?<=://)([^\s/:@]*):([^\s/@]+)(?=@)"), rf"\1:{HIDDEN}"),
)
_NAMES: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|AUTH_STRING|(?:DATABASE|CONNECTION)_URL$")
# What is shorter is no secret worth the name, and would be found in ordinary words.
_SHORTEST: Final = 8

_remembered: set[str] = set()


def without_secrets(text: str) -> str:
    """`text` with everything that is or looks like a secret replaced by `***`."""
    text = without_our_secrets(text)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


def without_our_secrets(text: str) -> str:
    """`text` with the secrets of this process replaced by `***`, and nothing that only looks like one."""
    for secret in _known():
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def remember(*secrets: str) -> None:
    """From now on these are secrets of this process, too."""
    _remembered.update(secrets)
    _known.cache_clear()


@functools.cache
def _known() -> tuple[str, ...]:
    """Every form in which our secrets may appear, the longest first."""
    found = {*_remembered, *_in_environment()}
    forms = {form for secret in found if len(secret) >= _SHORTEST for form in _forms(secret)}
    return tuple(sorted(forms, key=len, reverse=True))


def _in_environment() -> set[str]:
    """Secrets by the names of our variables; of an address its password only."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if not _NAMES.search(name):
            continue
        if "://" in value:
            found.update(unquote(part) for part in [urlsplit(value).password] if part)
            continue
        found.add(value)
        if "AUTH_STRING" in name:
            found.add(value.partition(":")[2])
    return found


def _forms(secret: str) -> set[str]:
    """As it is, inside an address, and as an HTTP header carries it."""
    return {secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()}
