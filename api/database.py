"""The engine for our own database."""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import partial
from typing import Any, Final

from sqlalchemy import event, exc
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from ai_task_orchestra.errors import ConfigurationError

#: Waiting for a free connection longer than this is answered as "unavailable".
POOL_WAIT_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 5.0
#: No statement of ours is meant to take this long.
STATEMENT_SECONDS: Final = 30.0
#: A process that freezes, or is cut off, inside a transaction must not keep its rows locked.
IDLE_IN_TRANSACTION_SECONDS: Final = 10
#: How the SQLSTATEs of a PostgreSQL begin that is cut off, full, stopping or just starting.
_AWAY: Final = ("08", "53", "57P", "25P03")
_DISK_FULL: Final = "53100"


def asyncpg_url(database_url: str) -> str:
    """The address in the spelling SQLAlchemy's asyncpg driver wants."""
    _, separator, rest = database_url.partition("://")
    if not separator:
        raise ConfigurationError("the database URL is not postgresql://user:password@host/database")
    return f"postgresql+asyncpg://{rest}"


def plain_url(database_url: str) -> str:
    """The address in the spelling asyncpg itself wants."""
    return f"postgresql://{database_url.partition('://')[2]}"


def open_engine(database_url: str, *, pool_size: int = 4, max_overflow: int = 4) -> AsyncEngine:
    """An engine; nothing is connected yet. Dispose of it at the end."""
    engine = create_async_engine(
        asyncpg_url(database_url),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_WAIT_SECONDS,
        json_serializer=partial(json.dumps, allow_nan=False, separators=(",", ":")),
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": {
                "application_name": "orchestra-api",
                "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS}s",
            },
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


class Sessions(async_sessionmaker[AsyncSession]):
    """Makes sessions whose records stay readable after the commit."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine, expire_on_commit=False)
        self._each_its_own = engine.execution_options(isolation_level="AUTOCOMMIT")

    def single(self) -> AsyncSession:
        """A session in which every statement is a transaction of its own: one round trip instead of three."""
        return self(bind=self._each_its_own)


def sessions_of(engine: AsyncEngine) -> Sessions:
    """The sessions of an engine."""
    return Sessions(engine)


def _refuse_closed(connection: Any, *_: object) -> None:
    """Never hand out a connection that the server has closed, as a restarted one has: make new ones.

    SQLAlchemy's own way asks the server each time, which takes asyncpg three round trips. A connection that broke
    without a word (a pulled cable) is found by the statement's time limit.

    Raises:
        InvalidatePoolError: to the pool, which then makes a new connection.
    """
    if connection.driver_connection.is_closed():
        raise exc.InvalidatePoolError


def is_away(error: DBAPIError) -> bool:
    """Whether PostgreSQL can't serve now (worth trying again), rather than that it refuses the statement."""
    return error.connection_invalidated or (getattr(error.orig, "sqlstate", None) or "").startswith(_AWAY)


def is_full(error: BaseException) -> bool:
    """Whether PostgreSQL has no room left on its disk; `error` is SQLAlchemy's or asyncpg's own."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) == _DISK_FULL


def raise_if_cancelled() -> None:
    """Raise the cancellation of this task that a library has swallowed: to be called where errors are ridden out.

    While PostgreSQL is silent, a statement that is cancelled ends as a time-out.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def dispose(engine: AsyncEngine) -> None:
    """Close the engine's connections; a server that says nothing is not waited for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS):
            await engine.dispose()
