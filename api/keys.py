"""API keys in the database: made once, shown once, kept as a hash.

`open_keys` is what `orchestra keys` uses; the API shares its own sessions with an `ApiKeyStore`.
"""

from __future__ import annotations

import builtins
import contextlib
import uuid
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, String, cast, func, or_, select
from sqlalchemy.exc import ProgrammingError
from sqlmodel import col

from ai_task_orchestra import api_keys
from ai_task_orchestra.errors import ConfigurationError, NotFoundError, UnreachableError
from api.auth import DEFAULT_TENANT, READ, WRITE, Identity
from api.database import Sessions, open_engine, sessions_of
from api.errors import STORAGE_ERRORS
from api.models import ApiKeyRecord

SCOPES: Final = (READ, WRITE)
MAX_NAME: Final = 100
#: `last_used_at` is for people who look for forgotten keys: this exact is enough, and a write per request is not.
LAST_USED_STEP: Final = timedelta(minutes=1)
#: What a person may call a key by, besides its id.
_SHOWN = (col(ApiKeyRecord.name), col(ApiKeyRecord.prefix))


@dataclass(frozen=True)
class StoredKey:
    """A stored key as its owner may see it in a list; the key itself is nowhere."""

    id: str
    name: str
    tenant: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def status(self) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            return "expired"
        return "active"


class ApiKeyStore:
    """The only SQL about API keys."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def create(
        self,
        name: str,
        *,
        scopes: Collection[str] = SCOPES,
        expires_at: datetime | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> tuple[StoredKey, str]:
        """Make a key. The second value is the key itself: only this answer ever holds it.

        Raises:
            ConfigurationError: no name, an unknown scope, or an expiry that has passed.
        """
        _check(name, scopes, expires_at)
        key = api_keys.generate_key()
        record = ApiKeyRecord(
            id=uuid.uuid4(),
            name=name,
            tenant=tenant,
            key_hash=api_keys.key_hash(key),
            prefix=api_keys.shown_part(key),
            scopes=sorted(scopes),
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        async with self._sessions.begin() as session:
            session.add(record)
        return _stored(record), key

    async def list(self) -> builtins.list[StoredKey]:
        """All keys ever made, oldest first."""
        async with self._sessions.single() as session:
            records = await session.scalars(
                select(ApiKeyRecord).order_by(col(ApiKeyRecord.created_at), col(ApiKeyRecord.id))
            )
            return [_stored(record) for record in records]

    async def revoke(self, which: str) -> StoredKey:
        """End a key, named by its id, its name or its shown beginning; again is no error.

        Raises:
            NotFoundError: there is no such key, or several that have not been revoked (then name its id).
        """
        async with self._sessions.begin() as session:
            named = or_(cast(col(ApiKeyRecord.id), String) == which, *(column == which for column in _SHOWN))
            found = (await session.scalars(select(ApiKeyRecord).where(named))).all()
            live = [record for record in found if record.revoked_at is None]
            if len(live) > 1:
                ids = ", ".join(sorted(str(record.id) for record in live))
                raise NotFoundError(f"{which!r} means several API keys; say which by id: {ids}")
            if not found:
                raise NotFoundError(f"there is no API key {which!r}")
            record = live[0] if live else found[-1]
            record.revoked_at = record.revoked_at or datetime.now(UTC)
            return _stored(record)

    async def find(self, key_hash: str) -> Identity | None:
        """The holder of the key with this hash, unless it was revoked or has expired."""
        now = datetime.now(UTC)
        async with self._sessions.begin() as session:
            record = await session.scalar(
                select(ApiKeyRecord).where(col(ApiKeyRecord.key_hash) == key_hash, *_usable(now))
            )
            if record is None:
                return None
            if record.last_used_at is None or now - record.last_used_at >= LAST_USED_STEP:
                record.last_used_at = now
            return Identity(record.name, record.tenant, frozenset(record.scopes), record.expires_at)

    async def count_usable(self) -> int:
        """How many stored keys would open the API now."""
        async with self._sessions.single() as session:
            counted = select(func.count()).select_from(ApiKeyRecord).where(*_usable(datetime.now(UTC)))
            return await session.scalar(counted) or 0


@contextlib.asynccontextmanager
async def open_keys(database_url: str) -> AsyncIterator[ApiKeyStore]:
    """The keys of the database at `database_url`, for a command that does nothing else.

    Raises:
        UnreachableError: the database does not answer, or has not been migrated.
    """
    engine = open_engine(database_url)
    try:
        yield ApiKeyStore(sessions_of(engine))
    except STORAGE_ERRORS as exc:
        raise UnreachableError(f"the database does not answer ({type(exc).__name__})") from exc
    except ProgrammingError as exc:
        raise UnreachableError("the database has no table of keys yet: run `python -m api.migrate`") from exc
    finally:
        await engine.dispose()


def _usable(now: datetime) -> tuple[ColumnElement[bool], ...]:
    """The conditions under which a stored key opens the API at `now`."""
    expires_at = col(ApiKeyRecord.expires_at)
    return col(ApiKeyRecord.revoked_at).is_(None), or_(expires_at.is_(None), expires_at > now)


def _check(name: str, scopes: Collection[str], expires_at: datetime | None) -> None:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ConfigurationError(f"a key's name has 1 to {MAX_NAME} printable characters")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise ConfigurationError(f"a key's scopes are some of: {', '.join(SCOPES)}")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise ConfigurationError("the key would have expired already")


def _stored(record: ApiKeyRecord) -> StoredKey:
    return StoredKey(
        id=str(record.id),
        name=record.name,
        tenant=record.tenant,
        prefix=record.prefix,
        scopes=tuple(sorted(record.scopes)),
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        last_used_at=record.last_used_at,
    )
