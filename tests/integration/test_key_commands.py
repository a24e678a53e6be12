"""`orchestra keys` on a real database, in this process."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ai_task_orchestra.api_keys import key_hash, looks_like_key
from ai_task_orchestra.cli import main
from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from api.identity import Identity
from api.keys import open_keys
from api.migrate import upgrade
from tests.support.servers import new_database

Outcome = tuple[int, str, str]


@pytest.fixture
def url(postgres_server: EmbeddedPostgres) -> str:
    async def migrated() -> str:
        address = await new_database(postgres_server)
        await upgrade(address)
        return address

    return asyncio.run(migrated())


@pytest.fixture
def keys(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs `orchestra keys ...`; (exit code, output, error output)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRA_DATABASE_URL", url)
    monkeypatch.setenv("ORCHESTRA_HOME", str(tmp_path))

    def run(*arguments: str) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["orchestra", "keys", *arguments])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main()
        return int(ended.value.code or 0), out.getvalue(), err.getvalue()

    return run


def holder(url: str, key: str) -> Identity | None:
    async def find() -> Identity | None:
        async with open_keys(url) as store:
            return await store.find(key_hash(key))

    return asyncio.run(find())


def test_a_key_is_made_with_its_limits_and_printed_once(keys: Callable[..., Outcome], url: str) -> None:
    limits = ["--max-priority", "4", "--max-queued", "9", "--max-running", "2", "--requests-per-minute", "60"]
    code, out, _ = keys(
        "create", "ci", "--tenant", "team", "--template", "a", "--template", "b", "--days", "3", *limits
    )
    key = out.strip()
    assert (code, looks_like_key(key)) == (0, True)
    found = holder(url, key)
    assert found is not None
    assert (found.name, found.tenant, found.scopes) == ("ci", "team", {"read", "submit"})
    assert found.limits.templates == ("a", "b")
    assert (found.limits.max_priority, found.limits.max_queued) == (4, 9)
    assert (found.limits.max_running, found.limits.requests_per_minute) == (2, 60)
    assert found.expires_at is not None
    _, listed, _ = keys("list")
    assert "ci" in listed and "team" in listed and key not in listed


def test_rights_are_chosen_by_an_option(keys: Callable[..., Outcome]) -> None:
    made = [json.loads(keys("create", "k", "--json", *option)[1]) for option in ([], ["--read-only"], ["--admin"])]
    assert [key["scopes"] for key in made] == [["read", "submit"], ["read"], ["admin", "read", "submit"]]
    code, _, err = keys("create", "k", "--read-only", "--admin")
    assert (code, "--read-only" in err) == (2, True)


def test_a_key_is_rotated_and_revoked_by_its_name(keys: Callable[..., Outcome], url: str) -> None:
    first = keys("create", "ci")[1].strip()
    second = keys("rotate", "ci")[1].strip()
    assert holder(url, first) is not None and holder(url, second) is not None
    third = keys("rotate", "ci", "--overlap-hours", "0")[1].strip()
    assert [holder(url, key) is not None for key in (first, second, third)] == [False, False, True]
    code, out, _ = keys("revoke", "ci")
    assert (code, "is revoked" in out) == (0, True)
    assert holder(url, third) is None
    code, _, err = keys("rotate", "ci")
    assert (code, "revoked" in err) == (4, True)


def test_what_makes_no_sense_is_told_in_one_line(keys: Callable[..., Outcome]) -> None:
    for arguments, expected in (
        (("create", ""), 2),
        (("create", "x", "--tenant", "a b"), 2),
        (("create", "x", "--max-priority", "11"), 2),
        (("rotate", "nobody"), 4),
        (("revoke", "nobody"), 4),
    ):
        code, _, err = keys(*arguments)
        assert (code, err.startswith("error: "), len(err.splitlines())) == (expected, True, 1), arguments
