"""The engine for our own database."""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import partial
from typing import Final

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
    return create_async_engine(
        asyncpg_url(database_url),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_pre_ping=True,
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


def sessions_of(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions whose records stay readable after the commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


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
