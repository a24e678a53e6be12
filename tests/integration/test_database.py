"""Our connections to PostgreSQL."""

from __future__ import annotations

import asyncpg
import psutil
from sqlalchemy import text

from api.database import open_engine, sessions_of
from tests.support.waiting import wait_until

OWN_PROCESS = text("SELECT pg_backend_pid()")
OWN_TRANSACTION = text("SELECT txid_current()")


async def test_a_connection_that_the_server_has_closed_is_not_handed_out_again(database_url: str) -> None:
    engine = open_engine(database_url, pool_size=1, max_overflow=0)
    sessions = sessions_of(engine)
    try:
        async with sessions() as session:
            before = await session.scalar(OWN_PROCESS)
        other = await asyncpg.connect(database_url)
        await other.execute("SELECT pg_terminate_backend($1)", before)
        await other.close()
        await wait_until(lambda: not psutil.pid_exists(before), description="the connection's process has ended")
        async with sessions() as session:
            assert await session.scalar(OWN_PROCESS) != before
    finally:
        await engine.dispose()


async def test_in_a_single_session_every_statement_is_a_transaction_of_its_own(database_url: str) -> None:
    engine = open_engine(database_url, pool_size=1, max_overflow=0)
    sessions = sessions_of(engine)
    try:
        async with sessions.single() as session:
            assert await session.scalar(OWN_TRANSACTION) != await session.scalar(OWN_TRANSACTION)
        async with sessions() as session:  # the same connection, used in the usual way again
            assert await session.scalar(OWN_TRANSACTION) == await session.scalar(OWN_TRANSACTION)
    finally:
        await engine.dispose()
