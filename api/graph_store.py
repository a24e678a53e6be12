"""What of dependencies and batches Prefect's graphs do not show yet: the SQL behind `api.graphs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Table, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from api.models import BatchRecord, TaskRecord

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]
BATCH: Final[Table] = BatchRecord.__table__  # type: ignore[attr-defined]

# The conditions are those of the index `task_without_nodes`.
_WITHOUT_NODES = text(
    """
    SELECT t.id, t.flow_run_id, t.depends_on, coalesce(a.started_at, t.completed_at, now()) AS at
    FROM task t LEFT JOIN attempt a ON a.task_id = t.id AND a.generation = t.generation
    WHERE t.depends_on <> '{}' AND t.unresolved = 0 AND t.status <> 'queued'
        AND t.flow_run_id IS NOT NULL AND t.nodes_run_id IS DISTINCT FROM t.flow_run_id
    ORDER BY t.seq LIMIT :limit
    """
)

# The conditions are those of the index `task_unshown`.
_UNSHOWN = text(
    """
    SELECT t.id, t.batch_id, b.group_run_id, t.name, t.template, t.status, t.depends_on,
        t.created_at, t.started_at, t.completed_at, t.flow_run_id
    FROM task t JOIN batch b ON b.id = t.batch_id
    WHERE t.batch_id IS NOT NULL AND t.shown IS DISTINCT FROM t.status
        AND b.group_run_id IS NOT NULL AND b.closed_at IS NULL
    ORDER BY t.seq LIMIT :limit
    """
)

_SHOWN = text(
    """
    UPDATE task SET shown = done.status FROM unnest(CAST(:ids AS uuid[]), CAST(:statuses AS text[])) AS done(id, status)
    WHERE task.id = done.id
    """
)

_UNGROUPED = text(
    "SELECT id FROM batch WHERE closed_at IS NULL AND group_run_id IS NULL ORDER BY created_at, id LIMIT :limit"
)

_WATCHED = text(
    """
    SELECT id, group_run_id FROM batch
    WHERE closed_at IS NULL AND group_run_id IS NOT NULL AND (CAST(:after AS uuid) IS NULL OR id > CAST(:after AS uuid))
        AND EXISTS (SELECT FROM task WHERE batch_id = batch.id AND status IN ('queued', 'running'))
    ORDER BY id LIMIT :limit
    """
)

_OVER = text(
    """
    SELECT id, group_run_id, ARRAY(SELECT status FROM task WHERE batch_id = batch.id) AS statuses FROM batch
    WHERE closed_at IS NULL AND group_run_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM task WHERE batch_id = batch.id AND status IN ('queued', 'running'))
        AND NOT EXISTS (SELECT FROM task WHERE batch_id = batch.id AND shown IS DISTINCT FROM status)
    ORDER BY created_at, id LIMIT :limit
    """
)


@dataclass(frozen=True)
class Dependent:
    """A run that has begun, or has ended, and whose graph does not show yet what it waited for. `at`: when it began."""

    id: UUID
    flow_run_id: UUID
    depends_on: list[UUID]
    at: datetime


@dataclass(frozen=True)
class Upstream:
    """A task as a node of a dependent's graph."""

    id: UUID
    template: str
    status: str
    flow_run_id: UUID | None


@dataclass(frozen=True)
class Member:
    """A task of a batch whose group shows another status, or nothing yet."""

    id: UUID
    batch_id: UUID
    group_run_id: UUID
    name: str | None
    template: str
    status: str
    depends_on: list[UUID]
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    flow_run_id: UUID | None


@dataclass(frozen=True)
class Group:
    """A batch and the flow run that shows it; `statuses` of its tasks, once all have ended."""

    batch_id: UUID
    run_id: UUID
    statuses: list[str] = field(default_factory=list)


class GraphStore:
    """What is to be shown, and what has been."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def dependents(self, limit: int) -> list[Dependent]:
        """Runs whose dependencies are to be shown, the oldest tasks first."""
        async with self._sessions() as session:
            return [Dependent(*row) for row in await session.execute(_WITHOUT_NODES, {"limit": limit})]

    async def upstream(self, ids: Sequence[UUID]) -> dict[UUID, Upstream]:
        """Tasks by id."""
        columns = (TASK.c.id, TASK.c.template, TASK.c.status, TASK.c.flow_run_id)
        async with self._sessions() as session:
            rows = await session.execute(select(*columns).where(TASK.c.id.in_(list(ids))))
            return {row.id: Upstream(*row) for row in rows}

    async def nodes_made(self, dependent: Dependent) -> None:
        """This run's graph shows its dependencies."""
        same_run = (TASK.c.id == dependent.id, TASK.c.flow_run_id == dependent.flow_run_id)
        async with self._sessions.begin() as session:
            await session.execute(update(TASK).where(*same_run).values(nodes_run_id=dependent.flow_run_id))

    async def ungrouped(self, limit: int) -> list[UUID]:
        """Batches without a group, the oldest first."""
        async with self._sessions() as session:
            return list(await session.scalars(_UNGROUPED, {"limit": limit}))

    async def watched(self, after: UUID | None, limit: int) -> list[Group]:
        """A page of the groups of batches that have not ended, in the order of their batches' ids."""
        async with self._sessions() as session:
            rows = await session.execute(_WATCHED, {"after": after, "limit": limit})
            return [Group(*row) for row in rows]

    async def over(self, limit: int) -> list[Group]:
        """Groups whose tasks have all ended and are shown so."""
        async with self._sessions() as session:
            return [Group(*row) for row in await session.execute(_OVER, {"limit": limit})]

    async def grouped(self, batch_id: UUID, group_run_id: UUID) -> None:
        """The batch has a group."""
        async with self._sessions.begin() as session:
            await session.execute(update(BATCH).where(BATCH.c.id == batch_id).values(group_run_id=group_run_id))

    async def unshown(self, limit: int) -> list[Member]:
        """Tasks whose status their group does not show, in the order of acceptance."""
        async with self._sessions() as session:
            return [Member(*row) for row in await session.execute(_UNSHOWN, {"limit": limit})]

    async def shown(self, statuses: Mapping[UUID, str]) -> None:
        """These tasks are shown with these statuses."""
        async with self._sessions.begin() as session:
            await session.execute(_SHOWN, {"ids": list(statuses), "statuses": list(statuses.values())})

    async def close(self, batch_id: UUID) -> None:
        """The group has ended."""
        async with self._sessions.begin() as session:
            await session.execute(update(BATCH).where(BATCH.c.id == batch_id).values(closed_at=func.now()))
