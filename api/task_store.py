"""Accepting tasks and showing them: the SQL behind `POST /tasks`, the lists and `GET /tasks/{id}`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Row, Select, Table, func, literal, select, text, union_all
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from ai_task_orchestra.errors import IdempotencyBusyError, IdempotencyMismatchError
from api import upstream
from api.database import Sessions
from api.models import FINAL, LIVE, AttemptRecord, DependencyRecord, TaskRecord
from api.views import AttemptView, NewTask, Submission, TaskView
from api.wake import Wake

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]
ATTEMPT: Final[Table] = AttemptRecord.__table__  # type: ignore[attr-defined]
DEPENDENCY: Final[Table] = DependencyRecord.__table__  # type: ignore[attr-defined]

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

STATUSES: Final = (*LIVE, *FINAL)
#: How long a second request with the same Idempotency-Key waits for the first one's transaction.
BUSY_MILLISECONDS: Final = 2000

_LOCK_NOT_AVAILABLE: Final = "55P03"

_SUMMARY: Final = (
    TASK.c.id,
    TASK.c.status,
    TASK.c.priority,
    TASK.c.created_at,
    TASK.c.started_at,
    TASK.c.completed_at,
    TASK.c.template,
    TASK.c.on_dependency_failure,
    TASK.c.flow_run_id,
)
_DETAIL: Final = (
    *_SUMMARY,
    TASK.c.parameters,
    TASK.c.depends_on,
    TASK.c.result,
    TASK.c.error,
    TASK.c.resource_usage,
    TASK.c.batch_id,
    TASK.c.name,
)
_NEWEST: Final = (TASK.c.created_at.desc(), TASK.c.id.desc())
# Compiled once; of a new row only the database knows when it was created.
_PLAIN_INSERT: Final = insert(TASK).returning(TASK.c.created_at)


@dataclass(frozen=True)
class Acceptance:
    """A row to be: columns of `task`, and what it waits for."""

    columns: dict[str, Any]
    tenant: str
    upstream: list[uuid.UUID]
    runs_anyway: bool
    idempotency_key: str | None = None
    body_hash: str | None = None


def columns_of(new: NewTask, default_pool: str) -> dict[str, Any]:
    """What a row takes from a request and its template, without what it depends on."""
    return {
        "template": new.template.name,
        "parameters": new.parameters,
        "priority": new.priority,
        "on_dependency_failure": new.on_dependency_failure,
        "work_pool": new.template.work_pool or default_pool,
        "retries": new.template.retries,
        "retry_delay_seconds": new.template.retry_delay_seconds,
        "on_worker_loss": new.template.on_worker_loss,
        "refers_to": new.refers_to or None,
    }


class TaskStore:
    """Accepts, shows and lists tasks. `ui_url` is where Prefect's UI answers."""

    def __init__(self, sessions: Sessions, wake: Wake, ui_url: str) -> None:
        self._sessions, self._wake, self._ui_url = sessions, wake, ui_url.rstrip("/")

    async def accept(self, new: Acceptance) -> Submission:
        """Write a task, durable when this returns; or find the one of an earlier request with the same key.

        Raises:
            UnknownDependencyError, DependencyFailedError: a dependency does not exist, or can't complete any more.
            IdempotencyMismatchError, IdempotencyBusyError: the key was used for another body, or is being used.
        """
        if new.idempotency_key is None and not new.upstream:
            return Submission(await self._accept_plain(new), True)
        if new.idempotency_key is not None and (known := await self._replay(new)):
            return known
        try:
            async with self._sessions.begin() as session:
                written = await self._insert(session, new)
                await self._wake.announce(session)
        except DBAPIError as exc:
            if is_lock_timeout(exc):
                raise IdempotencyBusyError from exc
            raise
        if written is None:
            known = await self._replay(new)
            if known is None:  # the first request was rolled back between our two looks
                raise IdempotencyBusyError
            return known
        self._wake.dispatch()
        return Submission(self.view(written), True)

    async def get(self, task_id: uuid.UUID, tenant: str) -> TaskView | None:
        """Everything about a task."""
        async with self._sessions.single() as session:
            row = (await session.execute(_one(task_id, tenant))).one_or_none()
            if row is None:
                return None
            attempts = await session.execute(
                select(ATTEMPT).where(ATTEMPT.c.task_id == task_id).order_by(ATTEMPT.c.generation)
            )
            return self.view(row, list(attempts))

    async def page(
        self, *, tenant: str, status: str | None, template: str | None, limit: int, offset: int
    ) -> tuple[list[TaskView], int]:
        """One page, newest first, and how many there are in all."""
        wanted = [TASK.c.tenant == tenant]
        wanted += [TASK.c.status == status] if status is not None else []
        wanted += [TASK.c.template == template] if template is not None else []
        page = select(*_SUMMARY).where(*wanted).order_by(*_NEWEST).limit(limit).offset(offset)
        count = select(func.count()).select_from(TASK).where(*wanted)
        async with self._sessions.single() as session:
            rows = list(await session.execute(page))
            total = len(rows) + offset if len(rows) < limit and (rows or not offset) else await session.scalar(count)
            return [self.view(row) for row in rows], total or 0

    async def by_status(self, *, tenant: str, limit: int) -> dict[str, list[TaskView]]:
        """The newest of each status: five short index scans, however many tasks there are."""
        groups = [
            select(*_SUMMARY, literal(number).label("group"))
            .where(TASK.c.tenant == tenant, TASK.c.status == status)
            .order_by(*_NEWEST)
            .limit(limit)
            .subquery()
            for number, status in enumerate(STATUSES)
        ]
        found: dict[str, list[TaskView]] = {status: [] for status in STATUSES}
        async with self._sessions.single() as session:
            for row in await session.execute(union_all(*(select(group) for group in groups))):
                found[row.status].append(self.view(row))
        for views in found.values():  # UNION ALL promises no order
            views.sort(key=lambda view: (view.created_at, uuid.UUID(view.id)), reverse=True)
        return found

    async def flow_runs(self, task_id: uuid.UUID, tenant: str) -> list[uuid.UUID] | None:
        """The flow runs of a task's attempts, the present one included; None: no such task."""
        async with self._sessions.single() as session:
            row = (await session.execute(_one(task_id, tenant))).one_or_none()
            if row is None:
                return None
            runs = set(await session.scalars(select(ATTEMPT.c.flow_run_id).where(ATTEMPT.c.task_id == task_id)))
            return list(runs | ({row.flow_run_id} if row.flow_run_id else set()))

    async def _accept_plain(self, new: Acceptance) -> TaskView:
        """A task that waits for nothing and has no key is one statement, and that a transaction of its own."""
        columns = new.columns | {"id": uuid.uuid4(), "tenant": new.tenant}
        async with self._sessions.single() as session:
            created_at = (await session.execute(_PLAIN_INSERT, columns)).scalar_one()
            await self._wake.announce(session)
        self._wake.dispatch()
        return TaskView(
            id=str(columns["id"]),
            status="queued",
            priority=columns["priority"],
            created_at=created_at,
            started_at=None,
            completed_at=None,
            template=columns["template"],
            parameters=columns["parameters"],
            depends_on=[],
            on_dependency_failure=columns["on_dependency_failure"],
            result=None,
            error=None,
            resource_usage=None,
            attempts=[],
            flow_run_id=None,
            flow_run_url=None,
        )

    async def _insert(self, session: AsyncSession, new: Acceptance) -> AnyRow | None:
        """None: another request with this key was first."""
        if new.idempotency_key is not None:
            await session.execute(text(f"SET LOCAL lock_timeout = {BUSY_MILLISECONDS}"))
        statuses = await upstream.lock(session, new.upstream, new.tenant)
        satisfied = upstream.settled(new.upstream, statuses, runs_anyway=new.runs_anyway)
        waiting = [task_id for task_id in new.upstream if task_id not in satisfied]
        statement = insert(TASK).values(
            id=uuid.uuid4(),
            tenant=new.tenant,
            unresolved=len(waiting),
            idempotency_key=new.idempotency_key,
            body_hash=new.body_hash,
            **new.columns,
        )
        if new.idempotency_key is not None:
            # PostgreSQL lets the second of two inserts wait for the first one's commit, then skips it.
            statement = statement.on_conflict_do_nothing(index_elements=[TASK.c.tenant, TASK.c.idempotency_key])
        row = (await session.execute(statement.returning(*_DETAIL))).one_or_none()
        if row is not None and new.upstream:
            edges = [{"task_id": row.id, "upstream_id": up, "resolved": up in satisfied} for up in new.upstream]
            await session.execute(insert(DEPENDENCY), edges)
        return row

    async def _replay(self, new: Acceptance) -> Submission | None:
        known = select(*_DETAIL, TASK.c.body_hash).where(
            TASK.c.tenant == new.tenant, TASK.c.idempotency_key == new.idempotency_key
        )
        async with self._sessions.single() as session:
            row = (await session.execute(known)).one_or_none()
        if row is None:
            return None
        if row.body_hash != new.body_hash:
            raise IdempotencyMismatchError
        return Submission(self.view(row), False)

    def view(self, row: AnyRow, attempts: Sequence[AnyRow] = ()) -> TaskView:
        """A row as the API shows it; columns that were not read have no value."""
        shown = row._mapping
        return TaskView(
            id=str(row.id),
            status=row.status,
            priority=row.priority,
            created_at=row.created_at,
            started_at=row.started_at,
            completed_at=row.completed_at,
            template=row.template,
            parameters=shown.get("parameters") or {},
            depends_on=[str(task_id) for task_id in shown.get("depends_on") or ()],
            on_dependency_failure=row.on_dependency_failure,
            result=shown.get("result"),
            error=shown.get("error"),
            resource_usage=shown.get("resource_usage"),
            attempts=[
                AttemptView(number, attempt.worker, attempt.started_at, attempt.ended_at, attempt.outcome)
                for number, attempt in enumerate(attempts, start=1)
            ],
            flow_run_id=str(row.flow_run_id) if row.flow_run_id else None,
            flow_run_url=f"{self._ui_url}/runs/flow-run/{row.flow_run_id}" if row.flow_run_id else None,
            batch_id=str(shown["batch_id"]) if shown.get("batch_id") else None,
            name=shown.get("name"),
        )


def _one(task_id: uuid.UUID, tenant: str) -> Select[Any]:
    owned: ColumnElement[bool] = TASK.c.tenant == tenant
    return select(*_DETAIL).where(TASK.c.id == task_id, owned)


def is_lock_timeout(error: DBAPIError) -> bool:
    """Whether the first request with the same Idempotency-Key is still being written."""
    return getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE
