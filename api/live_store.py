"""Rows on their way: the SQL by which the mirror brings a task in line with its flow run.

Every function works in its caller's transaction, on a row that `lock` has locked: whoever comes second sees what the
first has written, and a final status is never written over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Float, Table, Update, cast, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.dependency_store import settle
from api.models import FINAL, LIVE, AttemptRecord, AuditRecord, DisposalRecord, Phase, TaskRecord
from api.prefect_types import FlowRun
from api.transitions import Standing

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]
ATTEMPT: Final[Table] = AttemptRecord.__table__  # type: ignore[attr-defined]
DISPOSAL: Final[Table] = DisposalRecord.__table__  # type: ignore[attr-defined]
AUDIT: Final[Table] = AuditRecord.__table__  # type: ignore[attr-defined]

DELETE: Final = "delete"
CANCEL: Final = "cancel"
#: It is over, and counts as cancelled whatever it ended as.
OVERRULE: Final = "overrule"


@dataclass(frozen=True)
class LiveTask:
    """A row without what may be large: what is needed to decide about it."""

    id: UUID
    seq: int
    tenant: str
    template: str
    status: str
    priority: int
    unresolved: int
    adopted: bool
    work_pool: str
    generation: int
    phase: str
    not_before: datetime | None
    deployment_id: UUID | None
    flow_run_id: UUID | None
    state_id: UUID | None
    state_at: datetime | None
    worker: str | None
    started_at: datetime | None
    move_to: int | None
    cancel_requested_at: datetime | None
    #: How long its attempt has been seen not to stop by itself.
    cancelling_seconds: float | None
    failures: int
    losses: int
    hand_backs: int
    step_failures: dict[str, int] | None
    retries: int
    retry_delay_seconds: float
    on_worker_loss: str

    @property
    def is_final(self) -> bool:
        return self.status not in LIVE

    @property
    def is_untouched(self) -> bool:
        """No worker can have seen it: there is no flow run, or one that waits for other tasks."""
        return self.phase == Phase.WAITING or (self.phase == Phase.HELD and self.unresolved > 0)

    @property
    def standing(self) -> Standing:
        return Standing(
            cancel_requested=self.cancel_requested_at is not None,
            cancel_promised=self.cancel_requested_at is not None and self.cancelling_seconds is not None,
            failures=self.failures,
            losses=self.losses,
            hand_backs=self.hand_backs,
            step_failures=self.step_failures or {},
            retries=self.retries,
            retry_delay_seconds=self.retry_delay_seconds,
            on_worker_loss=self.on_worker_loss,
        )


# Times of our own are the database's, whichever machine the API runs on.
_CANCELLING_SECONDS: Final = cast(func.extract("epoch", func.now() - TASK.c.cancelling_since), Float)
_COLUMNS: Final[tuple[ColumnElement[Any], ...]] = tuple(
    _CANCELLING_SECONDS if name == "cancelling_seconds" else TASK.c[name] for name in LiveTask.__dataclass_fields__
)


async def read(session: AsyncSession, task_id: UUID) -> LiveTask | None:
    """The row as it is."""
    row = (await session.execute(select(*_COLUMNS).where(TASK.c.id == task_id))).one_or_none()
    return None if row is None else LiveTask(*row)


async def lock(session: AsyncSession, task_id: UUID) -> LiveTask | None:
    """The row, kept from changing until the transaction ends."""
    statement = select(*_COLUMNS).where(TASK.c.id == task_id).with_for_update(key_share=True)
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else LiveTask(*row)


async def write(session: AsyncSession, task: LiveTask, **columns: Any) -> None:
    """Change a live row."""
    await session.execute(_live(task).values(**columns))


async def begin_again(
    session: AsyncSession,
    task: LiveTask,
    *,
    not_before: datetime | None = None,
    delay: timedelta = timedelta(0),
    **columns: Any,
) -> None:
    """Give the task a new generation: the dispatcher will create its flow run, after `delay` or at `not_before`."""
    fresh: dict[str, Any] = {
        "status": "queued",
        "generation": task.generation + 1,
        "phase": Phase.WAITING,
        "not_before": func.now() + delay if delay else not_before,
        "flow_run_id": None,
        "state_id": None,
        "state_at": None,
        "worker": None,
        "cancelling_since": None,
        "priority": task.move_to or task.priority,
        "move_to": None,
    }
    await session.execute(_live(task).values(fresh | columns))


async def finish(
    session: AsyncSession,
    task: LiveTask,
    status: str,
    *,
    at: datetime | None = None,
    phase: str = Phase.ENDED,
    **columns: Any,
) -> list[UUID]:
    """End the task and settle what waits for it. `at`: when it ended, None = now.

    Returns the tasks that were cancelled for it.
    """
    ended = {"status": status, "completed_at": at or func.now(), "phase": phase, "move_to": None}
    await session.execute(_live(task).values(ended | columns))
    return await settle(session, [task.id], status)


async def cancel_batch(session: AsyncSession, batch_id: UUID) -> None:
    """Cancel the tasks of a batch: those that nobody can have begun here and now, for the others the wish is recorded.

    All are locked first, in the order of `seq`.
    """
    wanted = select(*_COLUMNS).where(TASK.c.batch_id == batch_id, TASK.c.status.in_(LIVE)).order_by(TASK.c.seq)
    tasks = [LiveTask(*row) for row in await session.execute(wanted.with_for_update(key_share=True))]
    now = {task.id: task for task in tasks if task.is_untouched}
    ended = {"status": "cancelled", "completed_at": func.now(), "phase": Phase.ENDED, "move_to": None}
    await session.execute(update(TASK).where(TASK.c.id.in_(now)).values(ended))
    for task in now.values():
        if task.flow_run_id is not None:
            await dispose(session, task.flow_run_id, task.id, CANCEL)
    later = [task.id for task in tasks if task.id not in now]
    wish = {"cancel_requested_at": func.coalesce(TASK.c.cancel_requested_at, func.now())}
    await session.execute(update(TASK).where(TASK.c.id.in_(later)).values(wish))
    await settle(session, list(now), "cancelled")


async def end_phase(session: AsyncSession, task_id: UUID) -> None:
    """The flow run of a task that ended while it was being created has been seen to."""
    await session.execute(update(TASK).where(TASK.c.id == task_id, TASK.c.status.in_(FINAL)).values(phase=Phase.ENDED))


async def record_attempt(
    session: AsyncSession, task: LiveTask, run: FlowRun, *, worker: str | None, ended: datetime | None, how: str | None
) -> None:
    """Write down that work was begun, and once it has ended, how."""
    values = {
        "task_id": task.id,
        "generation": task.generation,
        "flow_run_id": run.id,
        "worker": worker,
        "started_at": run.began,
        "ended_at": ended,
        "outcome": how,
    }
    statement = insert(ATTEMPT).values(values)
    changed: dict[str, Any] = {name: statement.excluded[name] for name in ("ended_at", "outcome")}
    changed |= {name: func.coalesce(statement.excluded[name], ATTEMPT.c[name]) for name in ("worker", "started_at")}
    await session.execute(
        statement.on_conflict_do_update(index_elements=[ATTEMPT.c.task_id, ATTEMPT.c.generation], set_=changed)
    )


async def recorded_outcome(session: AsyncSession, run_id: UUID) -> str | None:
    """How the attempt of this flow run ended, as far as it is decided."""
    found: str | None = await session.scalar(select(ATTEMPT.c.outcome).where(ATTEMPT.c.flow_run_id == run_id))
    return found


async def dispose(session: AsyncSession, run_id: UUID, task_id: UUID, action: str) -> None:
    """Write down that a flow run must go; what is written down already stands."""
    values = {"flow_run_id": run_id, "task_id": task_id, "action": action}
    await session.execute(insert(DISPOSAL).values(values).on_conflict_do_nothing())


async def disposed(session: AsyncSession, run_id: UUID) -> None:
    """A flow run that had to go is gone."""
    await session.execute(delete(DISPOSAL).where(DISPOSAL.c.flow_run_id == run_id))


async def forget_move(
    session: AsyncSession,
    task_id: UUID,
    *,
    generation: int | None = None,
    priority: int | None = None,
    earlier: int | None = None,
) -> None:
    """The wish to move is void; only that of this generation, or to this priority. An `earlier` one stands again."""
    wanted = [TASK.c.generation == generation] if generation is not None else []
    wanted += [TASK.c.move_to == priority] if priority is not None else []
    await session.execute(update(TASK).where(TASK.c.id == task_id, *wanted).values(move_to=earlier))


async def audit(session: AsyncSession, kind: str, task_id: UUID, run: FlowRun, detail: Mapping[str, Any]) -> None:
    """Write down a contradiction, once per state of the flow run."""
    values = {
        "kind": kind,
        "task_id": task_id,
        "flow_run_id": run.id,
        "state_id": run.state.id,
        "detail": dict(detail),
    }
    await session.execute(insert(AUDIT).values(values).on_conflict_do_nothing())


@dataclass(frozen=True)
class Mirrored:
    """What a row has taken in of its present flow run. `state_id` is None for one that was just created in a burst."""

    state_id: UUID | None
    worker: str | None


async def mirrored(session: AsyncSession, run_ids: Collection[UUID]) -> dict[UUID, Mirrored]:
    """How each of `run_ids` was last mirrored; only runs that are a task's present one."""
    rows = await session.execute(
        select(TASK.c.flow_run_id, TASK.c.state_id, TASK.c.worker).where(TASK.c.flow_run_id.in_(list(run_ids)))
    )
    return {row.flow_run_id: Mirrored(row.state_id, row.worker) for row in rows}


async def task_of_flow_run(session: AsyncSession, run_id: UUID) -> UUID | None:
    """The task whose present flow run this is."""
    found: UUID | None = await session.scalar(select(TASK.c.id).where(TASK.c.flow_run_id == run_id))
    return found


async def live_runs(
    session: AsyncSession, *, after: int, limit: int, running_only: bool = False
) -> Sequence[tuple[int, UUID]]:
    """A page of (seq, flow run) of tasks that have one and are not finished, in order of `seq`."""
    status = TASK.c.status == "running" if running_only else TASK.c.status.in_(LIVE)
    rows = await session.execute(
        select(TASK.c.seq, TASK.c.flow_run_id)
        .where(status, TASK.c.flow_run_id.is_not(None), TASK.c.seq > after)
        .order_by(TASK.c.seq)
        .limit(limit)
    )
    return [(row.seq, row.flow_run_id) for row in rows]


async def tasks_of_workers(session: AsyncSession, workers: Collection[str]) -> list[tuple[UUID, UUID, str]]:
    """(task, flow run, worker) of what is with one of `workers`."""
    rows = await session.execute(
        select(TASK.c.id, TASK.c.flow_run_id, TASK.c.worker).where(
            TASK.c.worker.in_(list(workers)), TASK.c.status.in_(LIVE), TASK.c.flow_run_id.is_not(None)
        )
    )
    return [(row.id, row.flow_run_id, row.worker) for row in rows]


def _live(task: LiveTask) -> Update:
    return update(TASK).where(TASK.c.id == task.id, TASK.c.generation == task.generation, TASK.c.status.in_(LIVE))
