"""Secrets taken out of text."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from ai_task_orchestra import redaction
from ai_task_orchestra.redaction import remember, without_our_secrets, without_secrets


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What other tests left in the environment, or made us remember, is forgotten."""
    monkeypatch.setattr(redaction, "_remembered", set())
    redaction._known.cache_clear()
    yield
    redaction._known.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("PREFECT_API_AUTH_STRING", "orchestra:hunter2-hunter2", "hunter2-hunter2"),
        ("PREFECT_API_AUTH_STRING", "orchestra:hunter2-hunter2", "orchestra:hunter2-hunter2"),
        ("ORCHESTRA_API_KEY", "whatever-it-is", "whatever-it-is"),
        ("AWS_SECRET_ACCESS_KEY", "whatever-it-is", "whatever-it-is"),
        ("ORCHESTRA_DATABASE_URL", "postgresql://me:pass%2Fword-1@host/db", "pass/word-1"),
        ("ORCHESTRA_DATABASE_URL", "postgresql://me:pass%2Fword-1@host/db", "pass%2Fword-1"),
        ("PREFECT_API_AUTH_STRING", "a:secret-secret", base64.b64encode(b"a:secret-secret").decode()),
    ],
)
def test_values_of_our_environment_are_secrets_by_their_names(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: str
) -> None:
    monkeypatch.setenv(name, value)

    assert without_our_secrets(f"it is {secret}, you know") == "it is ***, you know"


def test_other_values_and_short_ones_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.setenv("MY_TOKEN", "short")
    monkeypatch.setenv("OTHER_TOKEN", "")

    assert without_our_secrets("http://127.0.0.1:4200/api short") == "http://127.0.0.1:4200/api short"


def test_what_is_remembered_is_secret_from_then_on() -> None:
    assert without_our_secrets("a git-password-1") == "a git-password-1"
    remember("git-password-1")
    assert without_our_secrets("a git-password-1") == "a ***"


def test_what_only_looks_like_a_secret_is_taken_out_of_logs_alone() -> None:
    text = "ato_0123456789 at postgresql://me:password@host/db"

    assert without_our_secrets(text) == text
    assert without_secrets(text) == "ato_*** at postgresql://me:***@host/db"
