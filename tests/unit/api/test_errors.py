from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest
from sqlalchemy import exc as sql

from ai_task_orchestra import errors as domain
from ai_task_orchestra.errors import OrchestraError
from api.database import open_engine
from api.errors import status_of
from tests.support.api_app import ApiUnderTest, problem


class Unheard(domain.NotFoundError):
    """A leaf that the table of statuses does not name."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (domain.NotFoundError(), 404),
        (domain.UnknownDependencyError(), 404),
        (domain.ConflictError(), 409),
        (domain.DependencyFailedError(), 409),
        (domain.IdempotencyBusyError(), 409),
        (domain.IdempotencyMismatchError(), 422),
        (domain.ParameterError({"a": "b"}), 400),
        (domain.UnreachableError(), 503),
        (domain.ConfigurationError(), 500),
        (Unheard(), 404),
        (KeyError(), 500),
    ],
)
def test_the_nearest_class_in_the_mro_decides(error: Exception, status: int) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize("error", [domain.UnreachableError("PostgreSQL does not answer"), domain.DispatchError()])
async def test_an_unreachable_server_is_a_503_worth_trying_again(api: ApiUnderTest, error: OrchestraError) -> None:
    api.tasks.broken = error
    answer = await api.client.get("/api/v1/tasks")
    assert problem(answer) == (503, error.code)
    assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    "error",
    [
        sql.OperationalError("SELECT secret", {}, Exception("at /secret/path")),
        sql.TimeoutError("QueuePool limit"),
        asyncpg.TooManyConnectionsError("no"),
        asyncpg.CannotConnectNowError("starting up"),
        ConnectionRefusedError("/secret/socket"),
        TimeoutError("/secret/silence"),
    ],
)
async def test_a_database_that_does_not_answer_is_a_503_without_its_words(api: ApiUnderTest, error: Exception) -> None:
    api.tasks.broken = error
    answer = await api.client.get("/api/v1/tasks")
    assert problem(answer) == (503, "storage_unavailable")
    assert "secret" not in answer.text
    api.tasks.broken = None
    await api.still_serves()


class _StartingUp:
    """A PostgreSQL that is just starting: it refuses every session."""

    fields = (b"SFATAL", b"C57P03", b"Mthe database system is starting up")

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while (size := int.from_bytes(await reader.readexactly(4)) - 4) == 4:  # asks for TLS first
                await reader.readexactly(size)
                writer.write(b"N")
            body = b"".join(field + b"\0" for field in self.fields) + b"\0"
            writer.write(b"E" + (len(body) + 4).to_bytes(4) + body)
            await writer.drain()


async def test_a_database_that_is_just_starting_is_a_503_too(api: ApiUnderTest) -> None:
    async with await asyncio.start_server(_StartingUp(), "127.0.0.1", 0) as server:
        engine = open_engine(f"postgresql://a:b@127.0.0.1:{server.sockets[0].getsockname()[1]}/c")
        with pytest.raises(sql.DBAPIError) as caught:
            await engine.connect()
        await engine.dispose()
    api.tasks.broken = caught.value
    assert problem(await api.client.get("/api/v1/tasks")) == (503, "storage_unavailable")


async def test_a_statement_that_is_refused_is_no_503(api: ApiUnderTest) -> None:
    api.tasks.broken = sql.DBAPIError("SELECT 1/0", {}, Exception("division by zero"))
    assert problem(await api.client.get("/api/v1/tasks")) == (500, "internal_error")


@pytest.mark.parametrize(
    "error", [asyncpg.DiskFullError("no"), sql.DBAPIError("INSERT secret", {}, asyncpg.DiskFullError("no"))]
)
async def test_a_full_disk_is_told_as_such(api: ApiUnderTest, error: Exception) -> None:
    api.tasks.broken = error
    assert problem(await api.client.get("/api/v1/tasks")) == (503, "storage_full")
