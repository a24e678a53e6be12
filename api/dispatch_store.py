"""The dispatcher's to-do list: the SQL that finds rows whose flow runs are not yet as they should be."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Table, case, func, select, text, update

from api.database import Sessions
from api.models import DisposalRecord, Phase, TaskRecord

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]
DISPOSAL: Final[Table] = DisposalRecord.__table__  # type: ignore[attr-defined]

#: A page of anything that is worked through once a second.
CHORES: Final = 200

# The window: whatever is among the most urgent runnable tasks of its pool gets a flow run, the rest wait as rows.
# An adopted run that is scheduled for later keeps its place in Prefect.
_RUNNABLE = text(
    """
    SELECT id, generation, phase, template, deployment_id, flow_run_id, priority, batch_id,
        refers_to IS NOT NULL AS refers
    FROM (
        SELECT *
        FROM task
        WHERE work_pool = :pool AND status = 'queued' AND unresolved = 0
            AND (not_before IS NULL OR not_before <= now() OR adopted)
        ORDER BY priority DESC, seq LIMIT :window
    ) most_urgent
    WHERE phase IN ('waiting', 'creating')
        OR (phase = 'held' AND cancel_requested_at IS NULL)
    ORDER BY priority DESC, seq LIMIT :fetch
    """
)

# Those that wait for others are shown in Prefect too, the oldest first.
_WAITING_FOR_OTHERS = text(
    """
    SELECT id, generation, phase, template, deployment_id, flow_run_id, priority, batch_id,
        refers_to IS NOT NULL AS refers
    FROM (
        SELECT *
        FROM task WHERE work_pool = :pool AND status = 'queued' AND unresolved > 0
        ORDER BY seq LIMIT :window
    ) oldest
    WHERE phase IN ('waiting', 'creating')
    ORDER BY seq LIMIT :fetch
    """
)

# A row that ended while its flow run was being created: that run may exist by now.
_LEFT_OVER = text(
    """
    SELECT id, generation, phase, template, deployment_id, flow_run_id, priority, batch_id,
        refers_to IS NOT NULL AS refers
    FROM task
    WHERE phase = 'creating' AND status NOT IN ('queued', 'running')
    """
)


@dataclass(frozen=True)
class Candidate:
    """A row whose flow run is to be created or released. `refers`: its parameters hold references to results."""

    id: UUID
    generation: int
    phase: str
    template: str
    deployment_id: UUID | None
    flow_run_id: UUID | None
    priority: int
    batch_id: UUID | None
    refers: bool


@dataclass(frozen=True)
class Order:
    """A row marked as being created, with what its flow run is made from.

    `due`: when an adopted run is to start, as Prefect had it. Everybody else's time has come when they are dispatched.
    `refers`: there are references in the parameters; `dependencies`: how many tasks it depends on, ended or not.
    """

    id: UUID
    tenant: str
    template: str
    generation: int
    parameters: dict[str, Any]
    priority: int
    unresolved: int
    is_over: bool
    due: datetime | None
    batch_id: UUID | None
    refers: bool
    dependencies: int


class DispatchStore:
    """The dispatcher's to-do list."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def next(self, pools: Collection[str], *, window: int, limit: int, busy: Collection[UUID]) -> list[Candidate]:
        """The next `limit` rows to see to, the most urgent first; not those in `busy`."""
        found: list[Candidate] = []
        fetch = limit + len(busy)
        async with self._sessions.single() as session:
            for statement in (_RUNNABLE, _WAITING_FOR_OTHERS):
                for pool in pools:
                    rows = await session.execute(statement, {"pool": pool, "window": window, "fetch": fetch})
                    found += [Candidate(*row) for row in rows if row.id not in busy]
            if len(found) < limit:
                found += [Candidate(*row) for row in await session.execute(_LEFT_OVER) if row.id not in busy]
        return found[:limit]

    async def mark(self, candidate: Candidate, deployment_id: UUID, flow_id: UUID | None) -> Order | None:
        """Write down that this generation's flow run is being created, and from what; None: the row has changed."""
        values: dict[str, Any] = {"phase": Phase.CREATING, "deployment_id": deployment_id}
        values |= {"flow_id": flow_id} if flow_id else {}
        statement = (
            update(TASK)
            .where(
                TASK.c.id == candidate.id,
                TASK.c.generation == candidate.generation,
                TASK.c.phase.in_((Phase.WAITING, Phase.CREATING)),
            )
            .values(values)
            .returning(
                TASK.c.id,
                TASK.c.tenant,
                TASK.c.template,
                TASK.c.generation,
                TASK.c.parameters,
                TASK.c.priority,
                TASK.c.unresolved,
                (TASK.c.cancel_requested_at.is_not(None) | TASK.c.status.not_in(("queued", "running"))).label("over"),
                case((TASK.c.adopted, TASK.c.not_before)).label("due"),
                TASK.c.batch_id,
                TASK.c.refers_to.is_not(None).label("refers"),
                func.cardinality(TASK.c.depends_on),
            )
        )
        async with self._sessions.begin() as session:
            row = (await session.execute(statement)).one_or_none()
            return None if row is None else Order(*row)

    async def unmark(self, candidate: Candidate, *, deployment_gone: bool = False) -> None:
        """The flow run was certainly not created."""
        columns: dict[str, Any] = {"phase": Phase.WAITING}
        columns |= {"deployment_id": None, "flow_id": None} if deployment_gone else {}
        async with self._sessions.begin() as session:
            await session.execute(
                update(TASK)
                .where(
                    TASK.c.id == candidate.id,
                    TASK.c.generation == candidate.generation,
                    TASK.c.phase == Phase.CREATING,
                    TASK.c.status == "queued",
                )
                .values(columns)
            )

    async def pools(self) -> list[str]:
        """Where unfinished tasks wait."""
        async with self._sessions.single() as session:
            statement = select(TASK.c.work_pool).where(TASK.c.status.in_(("queued", "running"))).distinct()
            return list(await session.scalars(statement))

    async def cancelling(self) -> list[UUID]:
        """Tasks that are to be cancelled and are not yet, the longest waiting first."""
        async with self._sessions.single() as session:
            statement = select(TASK.c.id).where(
                TASK.c.cancel_requested_at.is_not(None), TASK.c.status.in_(("queued", "running"))
            )
            return list(await session.scalars(statement.order_by(TASK.c.cancel_requested_at).limit(CHORES)))

    async def moving(self) -> list[UUID]:
        """Tasks that wish to be moved."""
        async with self._sessions.single() as session:
            statement = select(TASK.c.id).where(TASK.c.move_to.is_not(None)).order_by(TASK.c.seq).limit(CHORES)
            return list(await session.scalars(statement))

    async def disposals(self, *, overdue_seconds: float) -> list[tuple[UUID, str, bool]]:
        """(flow run, action, whether it is overdue) of runs that have to go."""
        overdue = DISPOSAL.c.created_at < func.now() - timedelta(seconds=overdue_seconds)
        async with self._sessions.single() as session:
            statement = select(DISPOSAL.c.flow_run_id, DISPOSAL.c.action, overdue.label("overdue"))
            rows = await session.execute(statement.order_by(DISPOSAL.c.created_at).limit(CHORES))
            return [(row.flow_run_id, row.action, row.overdue) for row in rows]
