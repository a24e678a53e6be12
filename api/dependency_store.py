"""What the end of a task does to those that wait for it: the only SQL about dependencies.

Everything happens in the transaction that ends the task. Rows are locked in the order of `seq`; a dependency always
has the smaller one, so two such transactions, or one and a submission, never wait for each other in a circle.
A submission locks the rows it depends on (FOR SHARE): it either sees the end, or its rows are seen by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_RESOLVE = text(
    """
    WITH resolved AS (
        UPDATE dependency SET resolved = true
        WHERE upstream_id = ANY(CAST(:ended AS uuid[])) AND NOT resolved
        RETURNING task_id
    )
    SELECT task_id, count(*) FROM resolved GROUP BY task_id
    """
)

_LOCK = text(
    "SELECT id FROM task WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'queued' ORDER BY seq FOR NO KEY UPDATE"
)

_COUNT_DOWN = text(
    """
    UPDATE task SET unresolved = unresolved - done.count
    FROM unnest(CAST(:ids AS uuid[]), CAST(:counts AS bigint[])) AS done(id, count)
    WHERE task.id = done.id AND status = 'queued'
    RETURNING task.id, unresolved
    """
)

# Every queued task that can't run any more, with the dependency through which it is reached.
_DOOMED = text(
    """
    WITH RECURSIVE doomed(id, via) AS (
        SELECT d.task_id, d.upstream_id
        FROM dependency d JOIN task t ON t.id = d.task_id
        WHERE d.upstream_id = ANY(CAST(:ended AS uuid[])) AND NOT d.resolved
            AND t.status = 'queued' AND t.on_dependency_failure = 'cancel'
      UNION
        SELECT d.task_id, d.upstream_id
        FROM doomed JOIN dependency d ON d.upstream_id = doomed.id JOIN task t ON t.id = d.task_id
        WHERE NOT d.resolved AND t.status = 'queued' AND t.on_dependency_failure = 'cancel'
    )
    SELECT DISTINCT ON (id) id, via FROM doomed ORDER BY id, via
    """
)

# A row whose flow run is just being created keeps its phase: the dispatcher must see to that run.
_CANCEL = text(
    """
    WITH cancelled AS (
        UPDATE task
        SET status = 'cancelled', completed_at = now(), move_to = NULL,
            phase = CASE WHEN phase = 'creating' THEN 'creating' ELSE 'ended' END,
            error = json_build_object('type', 'dependency_failed', 'message', doomed.message)
        FROM unnest(CAST(:ids AS uuid[]), CAST(:messages AS text[])) AS doomed(id, message)
        WHERE task.id = doomed.id AND status = 'queued'
        RETURNING task.id, flow_run_id
    ), disposed AS (
        INSERT INTO disposal (flow_run_id, task_id, action)
        SELECT flow_run_id, id, 'cancel' FROM cancelled WHERE flow_run_id IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    SELECT id FROM cancelled
    """
)


async def settle(session: AsyncSession, ended: Sequence[UUID], status: str) -> list[UUID]:
    """Release or cancel what waits for tasks that have just ended as `status`; their rows are locked by the caller.

    Returns the tasks cancelled for them, transitively.
    """
    cancelled: list[UUID] = []
    if status != "completed":
        cancelled = await _cancel_dependents(session, ended, status)
    await _count_down(session, [*ended, *cancelled])
    return cancelled


async def _cancel_dependents(session: AsyncSession, roots: Sequence[UUID], status: str) -> list[UUID]:
    """Cancel until nothing more is found: a dependent that was accepted before its dependency was locked is new."""
    cancelled: list[UUID] = []
    ended = list(roots)
    while ended:
        doomed = {row.id: row.via for row in await session.execute(_DOOMED, {"ended": ended})}
        locked = await _lock(session, doomed)
        messages = [_cause(doomed[task_id], roots, status) for task_id in locked]
        result = await session.execute(_CANCEL, {"ids": locked, "messages": messages})
        ended = list(result.scalars())
        cancelled += ended
    return cancelled


def _cause(via: UUID, roots: Sequence[UUID], status: str) -> str:
    word = "failed" if status == "failed" else "was cancelled"
    if via in roots:
        return f"The task {via} that this one depends on {word}."
    cause = f"the task {roots[0]}" if len(roots) == 1 else "one before it"
    return f"The task {via} that this one depends on was cancelled, because {cause} {word}."


async def _count_down(session: AsyncSession, ended: Iterable[UUID]) -> None:
    """Dependencies that are over no longer hold anybody: completed, or the dependent wants to run anyway."""
    counts = {row.task_id: row.count for row in await session.execute(_RESOLVE, {"ended": list(ended)})}
    locked = await _lock(session, counts)
    if locked:
        await session.execute(_COUNT_DOWN, {"ids": locked, "counts": [counts[task_id] for task_id in locked]})


async def _lock(session: AsyncSession, ids: Collection[UUID]) -> list[UUID]:
    if not ids:
        return []
    return list(await session.scalars(_LOCK, {"ids": list(ids)}))
