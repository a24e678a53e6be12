"""A PostgreSQL of the operator's: databases created when missing, problems named."""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

import asyncpg
import pytest

from ai_task_orchestra.errors import ConfigurationError, UnreachableError
from ai_task_orchestra.stack import databases
from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from tests.support.servers import free_port


async def extensions(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        return {row["extname"] for row in await connection.fetch("SELECT extname FROM pg_extension")}
    finally:
        await connection.close()


async def test_a_missing_database_is_created_with_its_extension(postgres_server: EmbeddedPostgres) -> None:
    url = postgres_server.url(f'odd "name" {uuid.uuid4().hex[:6]}'.replace(" ", "%20").replace('"', "%22"))
    await databases.ensure_database(url, extension="pg_trgm")
    assert "pg_trgm" in await extensions(url)
    await databases.ensure_database(url, extension="pg_trgm")


async def test_an_address_for_sqlalchemy_is_taken_too(database_url: str) -> None:
    await databases.ensure_database(databases.sqlalchemy_url(database_url))


async def test_an_account_that_may_not_create_is_told_what_to_run(postgres_server: EmbeddedPostgres) -> None:
    name = f"plain_{uuid.uuid4().hex[:8]}"
    connection = await asyncpg.connect(postgres_server.url("postgres"))
    await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hush'")
    await connection.close()
    port = urlsplit(postgres_server.url("x")).port
    url = f"postgresql://{name}:hush@127.0.0.1:{port}/{name}_missing"
    with pytest.raises(ConfigurationError, match=f'CREATE DATABASE "{name}_missing"') as caught:
        await databases.ensure_database(url)
    assert "hush" not in caught.value.message


async def test_a_wrong_password_is_refused_without_showing_it(postgres_server: EmbeddedPostgres) -> None:
    url = postgres_server.url("postgres").replace(postgres_server.password, "wrong")
    with pytest.raises(ConfigurationError, match="refuses us") as caught:
        await databases.ensure_database(url)
    assert "wrong" not in caught.value.message


async def test_nobody_there_is_unreachable() -> None:
    port = free_port()
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}/x does not answer"):
        await databases.ensure_database(f"postgresql://u:hush@127.0.0.1:{port}/x")


def test_addresses_are_written_as_each_reader_wants_them() -> None:
    url = "postgres://u:p%40ss@h:5433/orchestra?sslmode=require"
    assert databases.plain_url(url) == "postgresql://u:p%40ss@h:5433/orchestra?sslmode=require"
    assert databases.on_same_server(url, "prefect") == "postgres://u:p%40ss@h:5433/prefect?sslmode=require"
    assert databases.sqlalchemy_url(url) == "postgresql+asyncpg://u:p%40ss@h:5433/orchestra?ssl=require"
    assert databases.shown_url(url) == "h:5433/orchestra"
