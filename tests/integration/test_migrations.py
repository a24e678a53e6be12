"""The schema: made by migrations, exactly as the models say, and safe to make again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from ai_task_orchestra.errors import UnreachableError
from api.database import asyncpg_url
from api.migrate import configuration, upgrade
from tests.support.servers import free_port, prefect_environment


async def test_the_migrations_make_exactly_the_schema_of_the_models(database_url: str) -> None:
    await upgrade(database_url)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), SQLModel.metadata))

    engine = create_async_engine(asyncpg_url(database_url))
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_migrating_again_or_twice_at_once_changes_nothing(database_url: str) -> None:
    await asyncio.gather(upgrade(database_url), upgrade(database_url), upgrade(database_url))
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO disposal VALUES (gen_random_uuid(), gen_random_uuid(), 'cancel', now())")
    await upgrade(database_url)
    assert await connection.fetchval("SELECT count(*) FROM disposal") == 1
    await connection.close()


async def test_every_migration_can_be_taken_back(database_url: str) -> None:
    await upgrade(database_url)

    def down(connection: Connection) -> None:
        config = configuration()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    engine = create_async_engine(asyncpg_url(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(down)
    await engine.dispose()
    connection = await asyncpg.connect(database_url)
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    assert {row["tablename"] for row in tables} <= {"alembic_version"}


async def test_a_database_that_does_not_answer_is_said_so() -> None:
    with pytest.raises(UnreachableError):
        await upgrade(f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/none")


async def test_a_wrong_password_is_no_secret_and_no_traceback(database_url: str) -> None:
    head, _, tail = database_url.partition("@")
    wrong = f"{head.rpartition(':')[0]}:wrong-secret@{tail}"
    with pytest.raises(UnreachableError) as refused:
        await upgrade(wrong)
    assert "wrong-secret" not in str(refused.value)


@pytest.mark.parametrize(("url", "code"), [(None, 2), ("sqlite:///x.db", 2), ("postgresql://a:b@127.0.0.1:1/c", 3)])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, url: str | None, code: int) -> None:
    env = prefect_environment(tmp_path) | ({"ORCHESTRA_DATABASE_URL": url} if url else {})
    done = subprocess.run(
        [sys.executable, "-m", "api.migrate"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert len(done.stderr.strip().splitlines()) == 1
