"""The SQL of batches: accepted all or none, shown, cancelled.

A dependency must have the smaller `seq` (locks are taken in that order), so the rows of a batch are written in an
order in which dependencies come first. Nobody else can depend on them before they are committed, so everything outside
that does has a larger number than all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Table, insert, select, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ai_task_orchestra.errors import IdempotencyBusyError, IdempotencyMismatchError
from api import audit, live_store, upstream
from api.admission import check_queue
from api.identity import Author
from api.models import BatchRecord, DependencyRecord, TaskRecord
from api.task_store import BUSY_MILLISECONDS, TaskStore, is_lock_timeout
from api.views import BatchSubmission, BatchView
from api.wake import Wake

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]
BATCH: Final[Table] = BatchRecord.__table__  # type: ignore[attr-defined]
DEPENDENCY: Final[Table] = DependencyRecord.__table__  # type: ignore[attr-defined]

_MEMBER: Final = tuple(
    TASK.c[name]
    for name in (
        "id",
        "name",
        "status",
        "priority",
        "created_at",
        "started_at",
        "completed_at",
        "template",
        "depends_on",
        "on_dependency_failure",
        "error",
        "flow_run_id",
    )
)


@dataclass(frozen=True)
class BatchRow:
    """A row of `task` to be. `upstream` are its dependencies, `label` is how messages call it."""

    id: UUID
    columns: dict[str, Any]
    upstream: list[UUID]
    runs_anyway: bool
    label: str


@dataclass(frozen=True)
class BatchAcceptance:
    """Rows to be, in an order in which dependencies come first; `task_ids` in the order of the request."""

    id: UUID
    tenant: str
    task_ids: list[UUID]
    names: dict[str, str]
    rows: list[BatchRow]
    by: Author
    idempotency_key: str | None
    body_hash: str | None


class BatchStore:
    """Accepts, shows and cancels batches."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], wake: Wake, tasks: TaskStore) -> None:
        self._sessions, self._wake, self._tasks = sessions, wake, tasks

    async def accept(self, new: BatchAcceptance) -> BatchSubmission:
        """Write a batch, durable when this returns; or find the one of an earlier request with the same key.

        Raises:
            UnknownDependencyError, DependencyFailedError: a dependency does not exist, or can't complete any more.
            QueueLimitError: the author's key may not have that many queued tasks more.
            IdempotencyMismatchError, IdempotencyBusyError: the key was used for another body, or is being used.
        """
        if new.idempotency_key is not None and (known := await self._replay(new)):
            return known
        try:
            async with self._sessions.begin() as session:
                created_at = await self._insert(session, new)
                await self._wake.announce(session)
        except DBAPIError as exc:
            if is_lock_timeout(exc):
                raise IdempotencyBusyError from exc
            raise
        if created_at is None:
            known = await self._replay(new)
            if known is None:  # the first request was rolled back between our two looks
                raise IdempotencyBusyError
            return known
        self._wake.dispatch()
        return BatchSubmission(str(new.id), created_at, [str(each) for each in new.task_ids], new.names, True)

    async def get(self, batch_id: UUID, tenant: str) -> BatchView | None:
        """The batch with all its tasks."""
        wanted = select(BATCH.c.created_at, BATCH.c.task_ids).where(BATCH.c.id == batch_id, BATCH.c.tenant == tenant)
        async with self._sessions() as session:
            batch = (await session.execute(wanted)).one_or_none()
            if batch is None:
                return None
            rows = await session.execute(select(*_MEMBER).where(TASK.c.batch_id == batch_id))
            found = {row.id: self._tasks.view(row) for row in rows}
        return BatchView(str(batch_id), batch.created_at, [found[task_id] for task_id in batch.task_ids])

    async def cancel(self, batch_id: UUID, by: Author) -> None:
        """Record that every task which has not ended is to be cancelled."""
        async with self._sessions.begin() as session:
            cancelled = await live_store.cancel_batch(session, batch_id)
            changes = {task_id: {"status": status, "batch": str(batch_id)} for task_id, status in cancelled.items()}
            await audit.record_tasks(session, audit.TASK_CANCELLED, by, changes)
            await self._wake.announce(session)
        self._wake.dispatch()

    async def _insert(self, session: AsyncSession, new: BatchAcceptance) -> Any:
        """When it was created; None: another request with this key was first."""
        await check_queue(session, new.by, adding=len(new.rows))
        if new.idempotency_key is not None:
            await session.execute(text(f"SET LOCAL lock_timeout = {BUSY_MILLISECONDS}"))
        batch = postgresql_insert(BATCH).values(
            id=new.id,
            tenant=new.tenant,
            task_ids=new.task_ids,
            idempotency_key=new.idempotency_key,
            body_hash=new.body_hash,
        )
        # PostgreSQL lets the second of two inserts wait for the first one's commit, then skips it.
        batch = batch.on_conflict_do_nothing(index_elements=[BATCH.c.tenant, BATCH.c.idempotency_key])
        created_at = await session.scalar(batch.returning(BATCH.c.created_at))
        if created_at is None:
            return None
        own = {row.id for row in new.rows}
        outside = {task_id for row in new.rows for task_id in row.upstream} - own
        statuses = await upstream.lock(session, outside, new.tenant) | dict.fromkeys(own, "queued")
        settled = {
            row.id: upstream.settled(row.upstream, statuses, runs_anyway=row.runs_anyway, label=row.label)
            for row in new.rows
        }
        # One statement per row, in this order: `seq` counts them.
        await session.execute(insert(TASK), [_values(new, row, settled[row.id]) for row in new.rows])
        changes = {row.id: _change(new, row) for row in new.rows}
        await audit.record_tasks(session, audit.TASK_CREATED, new.by, changes)
        edges = [
            {"task_id": row.id, "upstream_id": task_id, "resolved": task_id in settled[row.id]}
            for row in new.rows
            for task_id in row.upstream
        ]
        if edges:
            await session.execute(insert(DEPENDENCY), edges)
        return created_at

    async def _replay(self, new: BatchAcceptance) -> BatchSubmission | None:
        known = select(BATCH).where(BATCH.c.tenant == new.tenant, BATCH.c.idempotency_key == new.idempotency_key)
        async with self._sessions() as session:
            batch = (await session.execute(known)).one_or_none()
            if batch is None:
                return None
            if batch.body_hash != new.body_hash:
                raise IdempotencyMismatchError
            named = select(TASK.c.id, TASK.c.name).where(TASK.c.batch_id == batch.id, TASK.c.name.is_not(None))
            names = {row.id: row.name for row in await session.execute(named)}
        ids = [str(task_id) for task_id in batch.task_ids]
        in_order = {names[task_id]: str(task_id) for task_id in batch.task_ids if task_id in names}
        return BatchSubmission(str(batch.id), batch.created_at, ids, in_order, False)


def _change(new: BatchAcceptance, row: BatchRow) -> dict[str, Any]:
    """What the audit says of a new task."""
    return {"template": row.columns["template"], "priority": row.columns["priority"], "batch": str(new.id)}


def _values(new: BatchAcceptance, row: BatchRow, settled: Collection[UUID]) -> dict[str, Any]:
    return row.columns | {
        "id": row.id,
        "tenant": new.tenant,
        "batch_id": new.id,
        "depends_on": row.upstream,
        "unresolved": len(row.upstream) - len(settled),
    }
