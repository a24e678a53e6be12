"""What a new task depends on: looked at, and kept from ending, in the transaction that accepts the task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncSession

from ai_task_orchestra.errors import DependencyFailedError, UnknownDependencyError
from api.models import FINAL, TaskRecord

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]

#: Messages name at most this many ids.
NAMED: Final = 5


async def lock(session: AsyncSession, ids: Collection[UUID], tenant: str) -> dict[UUID, str]:
    """The statuses of those of `ids` that this tenant has, locked against ending now, in the order of `seq`."""
    if not ids:
        return {}
    wanted = select(TASK.c.id, TASK.c.status).where(TASK.c.id.in_(list(ids)), TASK.c.tenant == tenant)
    rows = await session.execute(wanted.order_by(TASK.c.seq).with_for_update(read=True))
    return {row.id: row.status for row in rows}


def settled(upstream: Sequence[UUID], statuses: Mapping[UUID, str], *, runs_anyway: bool, label: str = "") -> set[UUID]:
    """Which of `upstream` hold a new task no more. `label`: whose dependencies they are, for messages.

    Raises:
        UnknownDependencyError, DependencyFailedError: one does not exist, or can't complete any more.
    """
    where = f"{label}: depends_on" if label else "depends_on"
    if unknown := [str(task_id) for task_id in upstream if task_id not in statuses]:
        raise UnknownDependencyError(f"{where}: there is no task {_named(unknown)}.")
    over = [str(task_id) for task_id in upstream if statuses[task_id] in ("failed", "cancelled")]
    if over and not runs_anyway:
        raise DependencyFailedError(
            f"{where}: {_named(over)} already failed or was cancelled; "
            'set "on_dependency_failure": "run" to run all the same.'
        )
    return {task_id for task_id in upstream if statuses[task_id] in FINAL}


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more
