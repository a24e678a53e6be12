"""The audit: who changed what, and what contradicted it. Rows are written in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Table, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from api.identity import Author, author_columns
from api.models import AuditRecord

AUDIT: Final[Table] = AuditRecord.__table__  # type: ignore[attr-defined]

# What a change is called: `audit.kind`.
TASK_CREATED: Final = "task_created"
TASK_CANCELLED: Final = "task_cancelled"
PRIORITY_CHANGED: Final = "priority_changed"
KEY_CREATED: Final = "key_created"
KEY_ROTATED: Final = "key_rotated"
KEY_REVOKED: Final = "key_revoked"


async def record(
    session: AsyncSession,
    kind: str,
    by: Author | Mapping[str, Any],
    detail: Mapping[str, Any],
    *,
    task_id: UUID | None = None,
    key_id: UUID | None = None,
) -> None:
    """Write down a change in its own transaction. `by`: its author, or what `Author.as_json` gave."""
    known = by.as_json() if isinstance(by, Author) else by
    values = {"kind": kind, "task_id": task_id, "key_id": key_id, "detail": dict(detail)}
    await session.execute(insert(AUDIT).values(values | author_columns(known)))


async def record_tasks(session: AsyncSession, kind: str, by: Author, details: Mapping[UUID, Mapping[str, Any]]) -> None:
    """The same for many tasks at once: what changed of each."""
    author = author_columns(by.as_json())
    rows = [{"kind": kind, "task_id": task_id, "detail": dict(detail)} | author for task_id, detail in details.items()]
    if rows:
        await session.execute(insert(AUDIT), rows)


@dataclass(frozen=True)
class AuditEntry:
    """One row. `actor` is None for what nobody asked us for."""

    id: int
    at: datetime
    kind: str
    task_id: UUID | None
    key_id: UUID | None
    actor: str | None
    actor_key_id: UUID | None
    tenant: str | None
    request_id: str | None
    flow_run_id: UUID | None
    detail: dict[str, Any]


@dataclass(frozen=True)
class AuditFilter:
    """Which rows; None = all. `since` includes its moment."""

    kind: str | None = None
    task_id: UUID | None = None
    key_id: UUID | None = None
    actor_key_id: UUID | None = None
    request_id: str | None = None
    since: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        equal = ("kind", "task_id", "key_id", "actor_key_id", "request_id")
        wanted = {name: getattr(self, name) for name in equal}
        found = [AUDIT.c[name] == value for name, value in wanted.items() if value is not None]
        return found + ([AUDIT.c.at >= self.since] if self.since is not None else [])


class AuditStore:
    """Reads the audit."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def page(self, which: AuditFilter, *, limit: int, offset: int) -> list[AuditEntry]:
        """One page, newest first."""
        columns = [AUDIT.c[name] for name in AuditEntry.__dataclass_fields__]
        statement = select(*columns).where(*which.conditions()).order_by(AUDIT.c.id.desc())
        async with self._sessions() as session:
            return [AuditEntry(*row) for row in await session.execute(statement.limit(limit).offset(offset))]
