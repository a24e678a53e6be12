"""API keys in the database: made once, shown once, kept as a hash.

`open_keys` is what `orchestra keys` uses; the API shares its own sessions with an `ApiKeyStore`.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, String, and_, bindparam, cast, func, or_, select, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlmodel import col

from ai_task_orchestra import api_keys
from ai_task_orchestra.errors import ConflictError, InvalidRequestError, NotFoundError, UnreachableError
from ai_task_orchestra.protocol import PRIORITIES
from api import audit
from api.database import open_engine, sessions_of
from api.errors import STORAGE_ERRORS
from api.identity import COMMAND_LINE, DEFAULT_SCOPES, DEFAULT_TENANT, SCOPES, UNLIMITED, Author, Identity, Limits
from api.models import ApiKeyRecord

MAX_NAME: Final = 100
MAX_TEMPLATES: Final = 100
MAX_TASKS: Final = 1_000_000
MAX_REQUESTS_PER_MINUTE: Final = 60_000
#: How long a rotated key's former text still opens the API, unless said otherwise.
OVERLAP: Final = timedelta(days=1)
LONGEST_OVERLAP: Final = timedelta(days=30)
TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

_RANGES: Final[Mapping[str, range]] = {
    "max_priority": range(PRIORITIES[0], PRIORITIES[-1] + 1),
    "max_queued": range(1, MAX_TASKS + 1),
    "max_running": range(1, MAX_TASKS + 1),
    "requests_per_minute": range(1, MAX_REQUESTS_PER_MINUTE + 1),
}
_NOBODY: Final = "There is no such API key."
#: What a person may call a key by, besides its id.
_SHOWN = (col(ApiKeyRecord.name), col(ApiKeyRecord.prefix))


@dataclass(frozen=True)
class NewKey:
    """A key to be."""

    name: str
    tenant: str = DEFAULT_TENANT
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    expires_at: datetime | None = None
    limits: Limits = UNLIMITED

    def check(self) -> None:
        """Raise InvalidRequestError unless such a key makes sense."""
        if not 0 < len(self.name) <= MAX_NAME or not self.name.isprintable():
            raise InvalidRequestError(f"a key's name has 1 to {MAX_NAME} printable characters")
        if TENANT.fullmatch(self.tenant) is None:
            raise InvalidRequestError("a tenant's name has 1 to 64 letters, digits and . _ - and begins with no sign")
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise InvalidRequestError(f"a key's scopes are some of: {', '.join(SCOPES)}")
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            raise InvalidRequestError("the key would have expired already")
        templates = self.limits.templates
        if templates is not None and not 0 < len(templates) <= MAX_TEMPLATES:
            raise InvalidRequestError(f"a key's templates are 1 to {MAX_TEMPLATES} names")
        for name, allowed in _RANGES.items():
            value = getattr(self.limits, name)
            if value is not None and value not in allowed:
                raise InvalidRequestError(f"{name} is between {allowed[0]} and {allowed[-1]}")


@dataclass(frozen=True)
class StoredKey:
    """A stored key as its owner may see it in a list; the key itself is nowhere."""

    id: str
    name: str
    tenant: str
    prefix: str
    scopes: tuple[str, ...]
    limits: Limits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    #: Until when the key's text before the last rotation is accepted.
    previous_expires_at: datetime | None

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

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def create(self, new: NewKey, *, by: Author = COMMAND_LINE) -> tuple[StoredKey, str]:
        """Make a key. The second value is the key itself: only this answer ever holds it.

        Raises:
            InvalidRequestError: such a key makes no sense.
        """
        new.check()
        key = api_keys.generate_key()
        limits = new.limits
        record = ApiKeyRecord(
            id=uuid.uuid4(),
            name=new.name,
            tenant=new.tenant,
            key_hash=api_keys.key_hash(key),
            prefix=api_keys.shown_part(key),
            scopes=sorted(set(new.scopes)),
            created_at=datetime.now(UTC),
            expires_at=new.expires_at,
            templates=None if limits.templates is None else sorted(set(limits.templates)),
            max_priority=limits.max_priority,
            max_queued=limits.max_queued,
            max_running=limits.max_running,
            requests_per_minute=limits.requests_per_minute,
        )
        async with self._sessions.begin() as session:
            session.add(record)
            detail = {"name": record.name, "tenant": record.tenant, "scopes": record.scopes}
            await audit.record(session, audit.KEY_CREATED, by, detail, key_id=record.id)
        return _stored(record), key

    async def list(self, *, limit: int | None = None, offset: int = 0) -> builtins.list[StoredKey]:
        """Keys ever made, oldest first."""
        oldest_first = select(ApiKeyRecord).order_by(col(ApiKeyRecord.created_at), col(ApiKeyRecord.id))
        async with self._sessions() as session:
            return [_stored(record) for record in await session.scalars(oldest_first.limit(limit).offset(offset))]

    async def count(self) -> int:
        """How many keys were ever made."""
        async with self._sessions() as session:
            return await session.scalar(select(func.count()).select_from(ApiKeyRecord)) or 0

    async def get(self, key_id: uuid.UUID) -> StoredKey:
        """One key.

        Raises:
            NotFoundError: there is no such key.
        """
        async with self._sessions() as session:
            record = await session.get(ApiKeyRecord, key_id)
        if record is None:
            raise NotFoundError(_NOBODY)
        return _stored(record)

    async def revoke(self, which: str | uuid.UUID, *, by: Author = COMMAND_LINE) -> StoredKey:
        """End a key, named by its id, its name or its shown beginning; again is no error.

        Raises:
            NotFoundError: there is no such key, or several that have not been revoked (then name its id).
        """
        async with self._sessions.begin() as session:
            record = await _pick(session, which)
            if record.revoked_at is None:
                record.revoked_at = datetime.now(UTC)
                await audit.record(session, audit.KEY_REVOKED, by, {"name": record.name}, key_id=record.id)
            return _stored(record)

    async def rotate(
        self, which: str | uuid.UUID, *, overlap: timedelta = OVERLAP, by: Author = COMMAND_LINE
    ) -> tuple[StoredKey, str]:
        """Give a key, named as for `revoke`, a new text; the present one is accepted for `overlap` longer.

        Everything else stays: its id, tenant, limits and expiry. A text from before the present one ends at once.

        Raises:
            NotFoundError: as for `revoke`.
            ConflictError: it is revoked or has expired.
            InvalidRequestError: an overlap that is negative or too long.
        """
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            raise InvalidRequestError(f"the overlap is between 0 and {LONGEST_OVERLAP.days} days")
        key = api_keys.generate_key()
        async with self._sessions.begin() as session:
            record = await _pick(session, which)
            if (status := _stored(record).status) != "active":
                raise ConflictError(f"The API key is {status}.")
            until = datetime.now(UTC) + overlap
            record.previous_hash, record.previous_expires_at = (record.key_hash, until) if overlap else (None, None)
            record.key_hash, record.prefix = api_keys.key_hash(key), api_keys.shown_part(key)
            detail = {"name": record.name, "overlap_seconds": overlap.total_seconds()}
            await audit.record(session, audit.KEY_ROTATED, by, detail, key_id=record.id)
            return _stored(record), key

    async def find(self, key_hash: str) -> Identity | None:
        """The holder of the key with this hash, unless it was revoked, rotated away or has expired."""
        now = datetime.now(UTC)
        previous = and_(col(ApiKeyRecord.previous_hash) == key_hash, col(ApiKeyRecord.previous_expires_at) > now)
        wanted = or_(col(ApiKeyRecord.key_hash) == key_hash, previous)
        async with self._sessions() as session:
            record = await session.scalar(select(ApiKeyRecord).where(wanted, *_usable(now)))
        return None if record is None else _identity(record, former=record.key_hash != key_hash)

    async def note_used(self, uses: Mapping[uuid.UUID, datetime]) -> None:
        """Write down when keys were last used."""
        table = ApiKeyRecord.__table__  # type: ignore[attr-defined]
        # In the order of their ids: two processes that do this at once must not wait for each other in a circle.
        rows = [{"used_key": key_id, "used_at": uses[key_id]} for key_id in sorted(uses)]
        at = func.greatest(table.c.last_used_at, bindparam("used_at"))
        async with self._sessions.begin() as session:
            connection = await session.connection()
            statement = update(table).where(table.c.id == bindparam("used_key")).values(last_used_at=at)
            await connection.execute(statement, rows)

    async def count_usable(self) -> int:
        """How many stored keys would open the API now."""
        async with self._sessions() as session:
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


async def _pick(session: AsyncSession, which: str | uuid.UUID) -> ApiKeyRecord:
    """The one key that is meant, locked."""
    named = or_(cast(col(ApiKeyRecord.id), String) == str(which), *(column == which for column in _SHOWN))
    meant = col(ApiKeyRecord.id) == which if isinstance(which, uuid.UUID) else named
    found = (await session.scalars(select(ApiKeyRecord).where(meant).with_for_update())).all()
    live = [record for record in found if record.revoked_at is None]
    if len(live) > 1:
        ids = ", ".join(sorted(str(record.id) for record in live))
        raise NotFoundError(f"{which!r} means several API keys; say which by id: {ids}")
    if not found:
        raise NotFoundError(_NOBODY)
    return live[0] if live else found[-1]


def _usable(now: datetime) -> tuple[ColumnElement[bool], ...]:
    """The conditions under which a stored key opens the API at `now`."""
    expires_at = col(ApiKeyRecord.expires_at)
    return col(ApiKeyRecord.revoked_at).is_(None), or_(expires_at.is_(None), expires_at > now)


def _limits(record: ApiKeyRecord) -> Limits:
    return Limits(
        templates=None if record.templates is None else tuple(record.templates),
        max_priority=record.max_priority,
        max_queued=record.max_queued,
        max_running=record.max_running,
        requests_per_minute=record.requests_per_minute,
    )


def _identity(record: ApiKeyRecord, *, former: bool) -> Identity:
    """The holder; one who still uses the text before the rotation has it until the overlap ends at the latest."""
    ends = [at for at in (record.expires_at, record.previous_expires_at if former else None) if at is not None]
    return Identity(
        name=record.name,
        tenant=record.tenant,
        scopes=frozenset(record.scopes),
        key_id=record.id,
        limits=_limits(record),
        expires_at=min(ends, default=None),
    )


def _stored(record: ApiKeyRecord) -> StoredKey:
    return StoredKey(
        id=str(record.id),
        name=record.name,
        tenant=record.tenant,
        prefix=record.prefix,
        scopes=tuple(sorted(record.scopes)),
        limits=_limits(record),
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        last_used_at=record.last_used_at,
        previous_expires_at=record.previous_expires_at,
    )
