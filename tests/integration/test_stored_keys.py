"""API keys in a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from ai_task_orchestra.api_keys import key_hash, looks_like_key
from ai_task_orchestra.errors import ConflictError, InvalidRequestError, NotFoundError, UnreachableError
from api.identity import Identity, Limits
from api.keys import LONGEST_OVERLAP, ApiKeyStore, NewKey, open_keys
from api.migrate import upgrade
from tests.support.servers import free_port

EVERY_LIMIT = Limits(("ollama-inference",), max_priority=7, max_queued=10, max_running=2, requests_per_minute=60)


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
    stored, key = await keys.create(NewKey("ci"))
    assert looks_like_key(key)
    assert (stored.name, stored.status, stored.scopes, stored.prefix) == ("ci", "active", ("read", "submit"), key[:8])
    connection = await asyncpg.connect(database_url)
    row = await connection.fetchrow("SELECT * FROM api_key")
    written = await connection.fetch("SELECT * FROM audit")
    await connection.close()
    assert row["key_hash"] == key_hash(key)
    assert key not in repr(row)
    assert key not in repr(written)


async def test_a_key_is_found_by_its_hash_with_what_it_may_do(keys: ApiKeyStore) -> None:
    stored, key = await keys.create(NewKey("viewer", "team", ("read",), limits=EVERY_LIMIT))
    identity = Identity("viewer", "team", frozenset({"read"}), uuid.UUID(stored.id), EVERY_LIMIT)
    assert await keys.find(key_hash(key)) == identity
    assert await keys.find(key_hash("ato_other")) is None


@pytest.mark.parametrize("which", ["id", "name", "prefix"])
async def test_a_revoked_key_is_found_no_more(keys: ApiKeyStore, which: str) -> None:
    stored, key = await keys.create(NewKey("ci"))
    revoked = await keys.revoke(getattr(stored, which))
    assert (revoked.id, revoked.status) == (stored.id, "revoked")
    assert await keys.find(key_hash(key)) is None
    assert await keys.count_usable() == 0
    assert (await keys.revoke(stored.id)).revoked_at == revoked.revoked_at


async def test_revoking_what_is_unknown_or_ambiguous_ends_no_key(keys: ApiKeyStore) -> None:
    first, _ = await keys.create(NewKey("twin"))
    second, _ = await keys.create(NewKey("twin"))
    with pytest.raises(NotFoundError, match=f"{first.id}.*{second.id}|{second.id}.*{first.id}"):
        await keys.revoke("twin")
    with pytest.raises(NotFoundError, match="no such API key"):
        await keys.revoke("nobody")
    assert await keys.count_usable() == 2
    await keys.revoke(first.id)
    assert (await keys.revoke("twin")).id == second.id


async def test_a_key_that_bears_anothers_id_as_its_name_is_not_that_one(keys: ApiKeyStore) -> None:
    first, _ = await keys.create(NewKey("ci"))
    await keys.create(NewKey(first.id))
    assert (await keys.revoke(uuid.UUID(first.id))).id == first.id


async def test_an_expired_key_is_found_no_more(keys: ApiKeyStore, database_url: str) -> None:
    _, key = await keys.create(NewKey("guest", expires_at=datetime.now(UTC) + timedelta(hours=1)))
    found = await keys.find(key_hash(key))
    assert found is not None
    assert found.expires_at is not None
    await set_column(database_url, "expires_at", datetime.now(UTC) - timedelta(seconds=1))
    assert await keys.find(key_hash(key)) is None
    assert [key.status for key in await keys.list()] == ["expired"]
    with pytest.raises(ConflictError, match="expired"):
        await keys.rotate("guest")


class TestRotation:
    async def test_both_texts_open_the_api_until_the_overlap_ends(self, keys: ApiKeyStore, database_url: str) -> None:
        stored, old = await keys.create(NewKey("ci", "team", limits=EVERY_LIMIT))
        rotated, new = await keys.rotate("ci", overlap=timedelta(hours=1))
        assert (rotated.id, rotated.tenant, rotated.limits) == (stored.id, "team", EVERY_LIMIT)
        assert rotated.prefix == new[:8]
        by_old, by_new = await keys.find(key_hash(old)), await keys.find(key_hash(new))
        assert by_old is not None and by_new is not None
        assert by_old.key_id == by_new.key_id
        assert by_old.expires_at == rotated.previous_expires_at
        assert by_new.expires_at is None
        await set_column(database_url, "previous_expires_at", datetime.now(UTC) - timedelta(seconds=1))
        assert await keys.find(key_hash(old)) is None
        assert await keys.find(key_hash(new)) is not None

    async def test_without_overlap_the_old_text_ends_at_once(self, keys: ApiKeyStore) -> None:
        _, old = await keys.create(NewKey("ci"))
        rotated, new = await keys.rotate("ci", overlap=timedelta(0))
        assert rotated.previous_expires_at is None
        assert await keys.find(key_hash(old)) is None
        assert await keys.find(key_hash(new)) is not None

    async def test_another_rotation_ends_the_first_text(self, keys: ApiKeyStore) -> None:
        _, first = await keys.create(NewKey("ci"))
        _, second = await keys.rotate("ci")
        _, third = await keys.rotate("ci")
        assert [await keys.find(key_hash(key)) is not None for key in (first, second, third)] == [False, True, True]

    async def test_revoking_ends_both_texts(self, keys: ApiKeyStore) -> None:
        _, old = await keys.create(NewKey("ci"))
        _, new = await keys.rotate("ci")
        await keys.revoke("ci")
        assert [await keys.find(key_hash(key)) for key in (old, new)] == [None, None]
        with pytest.raises(ConflictError, match="revoked"):
            await keys.rotate("ci")

    async def test_an_overlap_that_makes_no_sense_is_refused(self, keys: ApiKeyStore) -> None:
        _, key = await keys.create(NewKey("ci"))
        for overlap in (timedelta(seconds=-1), LONGEST_OVERLAP + timedelta(seconds=1)):
            with pytest.raises(InvalidRequestError):
                await keys.rotate("ci", overlap=overlap)
        assert await keys.find(key_hash(key)) is not None


async def test_looking_a_key_up_writes_nothing(keys: ApiKeyStore) -> None:
    _, key = await keys.create(NewKey("ci"))
    await keys.find(key_hash(key))
    assert (await keys.list())[0].last_used_at is None


async def test_the_last_use_never_goes_back(keys: ApiKeyStore) -> None:
    stored, _ = await keys.create(NewKey("ci"))
    other, _ = await keys.create(NewKey("unused"))
    now = datetime.now(UTC)
    await keys.note_used({uuid.UUID(stored.id): now})
    await keys.note_used({uuid.UUID(stored.id): now - timedelta(minutes=5)})
    assert (await keys.get(uuid.UUID(stored.id))).last_used_at == now
    assert (await keys.get(uuid.UUID(other.id))).last_used_at is None


async def test_keys_are_listed_oldest_first(keys: ApiKeyStore) -> None:
    names = [f"key-{number}" for number in range(3)]
    for name in names:
        await keys.create(NewKey(name))
    assert [key.name for key in await keys.list()] == names
    assert [key.name for key in await keys.list(limit=1, offset=1)] == names[1:2]
    assert await keys.count() == 3


NO_SENSE: list[dict[str, Any]] = [
    {"name": ""},
    {"name": "x" * 101},
    {"name": "line\nbreak"},
    {"tenant": ""},
    {"tenant": "a b"},
    {"tenant": "-x"},
    {"scopes": ()},
    {"scopes": ("write",)},
    {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
    {"limits": Limits(templates=())},
    {"limits": Limits(max_priority=11)},
    {"limits": Limits(max_queued=0)},
    {"limits": Limits(max_running=-1)},
    {"limits": Limits(requests_per_minute=10**9)},
]


async def test_a_key_that_makes_no_sense_is_not_made(keys: ApiKeyStore) -> None:
    for wrong in NO_SENSE:
        with pytest.raises(InvalidRequestError):
            await keys.create(NewKey(**{"name": "ci"} | wrong))
    assert await keys.list() == []


async def test_keys_made_before_there_were_three_scopes_keep_their_rights(database_url: str) -> None:
    await upgrade(database_url, "0001")
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO api_key (id, name, key_hash, prefix, scopes) VALUES (gen_random_uuid(), 'old', $1, 'ato_', $2)",
        key_hash("ato_old"),
        ["read", "write"],
    )
    await connection.close()
    await upgrade(database_url)
    async with open_keys(database_url) as keys:
        found = await keys.find(key_hash("ato_old"))
    assert found is not None
    assert found.scopes == {"read", "submit"}


async def test_a_database_without_tables_is_told_with_its_mend(database_url: str) -> None:
    with pytest.raises(UnreachableError, match=r"api\.migrate"):
        async with open_keys(database_url) as keys:
            await keys.list()


async def test_a_database_that_does_not_answer_is_told() -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        async with open_keys(f"postgresql://nobody:secret@127.0.0.1:{free_port()}/x") as keys:
            await keys.list()
