"""The two databases on a PostgreSQL server of the operator's."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

from ai_task_orchestra.errors import ConfigurationError, UnreachableError

PREFECT_DATABASE = "prefect"
MAINTENANCE_DATABASE = "postgres"
TIMEOUT_SECONDS = 10.0


def on_same_server(url: str, database: str) -> str:
    """The address of another database on the server of `url`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{database}"))


def database_name(url: str) -> str:
    """The database that an address names."""
    return unquote(urlsplit(url).path.lstrip("/"))


def plain_url(url: str) -> str:
    """An address as `asyncpg` and PostgreSQL's own tools take it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(scheme="postgresql"))


def sqlalchemy_url(url: str) -> str:
    """An address as Prefect's server takes it; its driver says `ssl` where libpq says `sslmode`."""
    parts = urlsplit(url)
    query = [("ssl" if name == "sslmode" else name, value) for name, value in parse_qsl(parts.query)]
    return urlunsplit(parts._replace(scheme="postgresql+asyncpg", query=urlencode(query)))


def shown_url(url: str) -> str:
    """An address without its password."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 5432}/{database_name(url)}"


async def ensure_database(url: str, *, extension: str | None = None) -> None:
    """Make sure that the database exists, creating it (and `extension` in it) if we may.

    Raises:
        UnreachableError: the server does not answer.
        ConfigurationError: it refuses us, or we may not create what is missing; the message says what to run.
    """
    try:
        connection = await asyncpg.connect(plain_url(url), timeout=TIMEOUT_SECONDS)
    except asyncpg.InvalidCatalogNameError:
        await _create(url)
        connection = await asyncpg.connect(plain_url(url), timeout=TIMEOUT_SECONDS)
    except asyncpg.PostgresError as exc:
        raise ConfigurationError(f"PostgreSQL at {shown_url(url)} refuses us: {exc}") from exc
    except (OSError, TimeoutError) as exc:
        raise UnreachableError(f"PostgreSQL at {shown_url(url)} does not answer: {exc}") from exc
    try:
        if extension is not None:
            await connection.execute(f'CREATE EXTENSION IF NOT EXISTS "{extension}"')
    except asyncpg.PostgresError as exc:
        raise ConfigurationError(
            f"the database {shown_url(url)} needs the extension {extension}; as an administrator run there: "
            f"CREATE EXTENSION {extension}"
        ) from exc
    finally:
        await connection.close()


async def _create(url: str) -> None:
    name = database_name(url)
    try:
        connection = await asyncpg.connect(
            plain_url(on_same_server(url, MAINTENANCE_DATABASE)), timeout=TIMEOUT_SECONDS
        )
        try:
            await connection.execute(f'CREATE DATABASE "{name.replace(chr(34), chr(34) * 2)}"')
        finally:
            await connection.close()
    except asyncpg.DuplicateDatabaseError:
        return
    except (asyncpg.PostgresError, OSError, TimeoutError) as exc:
        raise ConfigurationError(
            f"the database {shown_url(url)} does not exist and can't be created ({exc}); "
            f'as an administrator run: CREATE DATABASE "{name}"'
        ) from exc
