"""API keys in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from ai_task_orchestra.api_keys import key_hash, looks_like_key
from ai_task_orchestra.errors import ConfigurationError, NotFoundError, UnreachableError
from api.auth import Identity
from api.keys import ApiKeyStore, open_keys
from api.migrate import upgrade
from tests.support.servers import free_port


@pytest.fixture
async def keys(database_url: str) -> AsyncIterator[ApiKeyStore]:
    await upgrade(database_url)
    async with open_keys(database_url) as store:
        yield store


async def set_column(database_url: str, column: str, value: datetime) -> None:
    """Let time pass for every key."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"UPDATE api_key SET {column} = $1", value)  # noqa: S608 - a test's own column name
    await connection.close()


async def test_a_key_is_shown_once_and_stored_as_its_hash(keys: ApiKeyStore, database_url: str) -> None:
    stored, key = await keys.create("ci")
    assert looks_like_key(key)
    assert (stored.name, stored.status, stored.scopes, stored.prefix) == ("ci", "active", ("read", "write"), key[:8])
    connection = await asyncpg.connect(database_url)
    row = await connection.fetchrow("SELECT * FROM api_key")
    await connection.close()
    assert row["key_hash"] == key_hash(key)
    assert key not in repr(row)


async def test_a_key_is_found_by_its_hash_with_what_it_may_do(keys: ApiKeyStore) -> None:
    _, key = await keys.create("viewer", scopes=["read"], tenant="team")
    assert await keys.find(key_hash(key)) == Identity("viewer", "team", frozenset({"read"}))
    assert await keys.find(key_hash("ato_other")) is None


@pytest.mark.parametrize("which", ["id", "name", "prefix"])
async def test_a_revoked_key_is_found_no_more(keys: ApiKeyStore, which: str) -> None:
    stored, key = await keys.create("ci")
    revoked = await keys.revoke(getattr(stored, which))
    assert (revoked.id, revoked.status) == (stored.id, "revoked")
    assert await keys.find(key_hash(key)) is None
    assert await keys.count_usable() == 0
    assert (await keys.revoke(stored.id)).revoked_at == revoked.revoked_at


async def test_revoking_what_is_unknown_or_ambiguous_ends_no_key(keys: ApiKeyStore) -> None:
    first, _ = await keys.create("twin")
    second, _ = await keys.create("twin")
    with pytest.raises(NotFoundError, match=f"{first.id}.*{second.id}|{second.id}.*{first.id}"):
        await keys.revoke("twin")
    with pytest.raises(NotFoundError, match="no API key 'nobody'"):
        await keys.revoke("nobody")
    assert await keys.count_usable() == 2
    await keys.revoke(first.id)
    assert (await keys.revoke("twin")).id == second.id


async def test_an_expired_key_is_found_no_more(keys: ApiKeyStore, database_url: str) -> None:
    _, key = await keys.create("guest", expires_at=datetime.now(UTC) + timedelta(hours=1))
    found = await keys.find(key_hash(key))
    assert found is not None
    assert found.expires_at is not None
    await set_column(database_url, "expires_at", datetime.now(UTC) - timedelta(seconds=1))
    assert await keys.find(key_hash(key)) is None
    assert [key.status for key in await keys.list()] == ["expired"]


async def test_the_last_use_is_noted_once_a_minute(keys: ApiKeyStore, database_url: str) -> None:
    _, key = await keys.create("ci")
    assert (await keys.list())[0].last_used_at is None
    await keys.find(key_hash(key))
    first = (await keys.list())[0].last_used_at
    assert first is not None
    await keys.find(key_hash(key))
    assert (await keys.list())[0].last_used_at == first
    await set_column(database_url, "last_used_at", datetime.now(UTC) - timedelta(minutes=2))
    await keys.find(key_hash(key))
    later = (await keys.list())[0].last_used_at
    assert later is not None
    assert later >= first


async def test_keys_are_listed_oldest_first(keys: ApiKeyStore) -> None:
    names = [f"key-{number}" for number in range(3)]
    for name in names:
        await keys.create(name)
    assert [key.name for key in await keys.list()] == names


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "line\nbreak"},
        {"scopes": []},
        {"scopes": ["admin"]},
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
    ids=repr,
)
async def test_a_key_that_makes_no_sense_is_not_made(keys: ApiKeyStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        await keys.create(**({"name": "ci"} | wrong))
    assert await keys.list() == []


async def test_a_database_without_tables_is_told_with_its_mend(database_url: str) -> None:
    with pytest.raises(UnreachableError, match=r"api\.migrate"):
        async with open_keys(database_url) as keys:
            await keys.list()


async def test_a_database_that_does_not_answer_is_told() -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        async with open_keys(f"postgresql://nobody:secret@127.0.0.1:{free_port()}/x") as keys:
            await keys.list()
