"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One sentence about one thing. A problem has a mend; a note is for people to judge."""

    check: str
    verdict: Verdict
    says: str
    mend: str | None = None


def ok(check: str, says: str) -> Finding:
    return Finding(check, "ok", says)


def note(check: str, says: str, mend: str | None = None) -> Finding:
    return Finding(check, "note", says, mend)


def problem(check: str, says: str, mend: str) -> Finding:
    return Finding(check, "problem", says, mend)


def or_ok(check: str, found: Iterable[Finding], says: str) -> list[Finding]:
    """What was found, or that nothing was."""
    return list(found) or [ok(check, says)]
