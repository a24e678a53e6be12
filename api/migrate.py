"""Bring our database to the present schema: `python -m api.migrate`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ai_task_orchestra.errors import ConfigurationError, OrchestraError, UnreachableError
from ai_task_orchestra.settings import load_settings
from api.database import CONNECT_SECONDS, asyncpg_url

MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: Two starts at once migrate one after the other.
LOCK: Final = 0x6D696772617465


async def upgrade(database_url: str, revision: str = "head") -> None:
    """Apply every migration that is missing, in one transaction; doing it again changes nothing.

    Raises:
        UnreachableError: the database does not answer, or does not let us in.
        ConfigurationError: it does not take the migration; the message has its reason.
    """
    engine = create_async_engine(asyncpg_url(database_url), connect_args={"timeout": CONNECT_SECONDS})
    try:
        async with contextlib.aclosing(await _connected(engine)) as connection, connection.begin():
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            await connection.run_sync(_run, revision)
    except SQLAlchemyError as exc:
        raise ConfigurationError(f"the database does not take the schema: {_reason(exc)}") from exc
    finally:
        await engine.dispose()


async def _connected(engine: AsyncEngine) -> AsyncConnection:
    try:
        return await engine.connect()
    except (SQLAlchemyError, OSError, TimeoutError) as exc:
        raise UnreachableError(f"the database does not answer: {_reason(exc)}") from exc


def _reason(error: Exception) -> str:
    """One line, without the statement."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def configuration() -> Config:
    """Alembic's configuration; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _run(connection: Connection, revision: str) -> None:
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def main() -> int:
    """The command: 0 = the schema is the present one, 2 = configuration, 3 = the database does not answer."""
    try:
        settings = load_settings()
        if settings.database_url is None:
            raise ConfigurationError("ORCHESTRA_DATABASE_URL is not set")
        asyncio.run(upgrade(settings.database_url))
    except OrchestraError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return 3 if isinstance(exc, UnreachableError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
