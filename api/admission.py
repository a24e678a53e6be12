"""The limits of a key on its tasks: how many may be queued, and how many may run at once.

**Queued.** Counted in the transaction that adds to them, one such transaction of a key at a time.

**Running.** A task of a key with `max_running` is *barred* from the start: a row of its own queue, outside the
dispatcher's window, so that a thousand of them keep nobody else waiting. Admission lets in the most urgent ones as long
as the key has free places. A place is taken from then on, since a worker may start the run at any moment, and until the
task ends or goes back for another attempt. That is decided in one transaction at a time, by the leader, right before it
looks for what to dispatch: there are never more than `max_running`.

When all places are taken and a more urgent task of the same key waits, the least urgent one that nobody has started
goes back to being a barred row, as a change of priority would take it back.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from ai_task_orchestra.errors import QueueLimitError
from api.identity import Author
from api.models import ApiKeyRecord, TaskRecord

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]
API_KEY: Final[Table] = ApiKeyRecord.__table__  # type: ignore[attr-defined]

#: When a queue that is full may have room again: nobody knows, but asking more often is of no use.
RETRY_SECONDS: Final = 5.0
#: Advisory locks of one and of two numbers never meet: admissions have one, a key's queue has two.
_ADMISSION_LOCK: Final = 0x61646D69
_QUEUE_LOCK: Final = 0x71756575

_LOCK_QUEUE = text(f"SELECT pg_advisory_xact_lock({_QUEUE_LOCK}, hashtext(:key))")

_BARRED = "status = 'queued' AND unresolved = 0 AND barred"
_DUE = "(not_before IS NULL OR not_before <= now())"

_ANY_BARRED = text(f"SELECT EXISTS (SELECT 1 FROM task WHERE {_BARRED})")  # noqa: S608 (constants)

_LOCK_ADMISSION = text(f"SELECT pg_advisory_xact_lock({_ADMISSION_LOCK})")

_ADMIT = text(
    f"""
    WITH place AS (
        SELECT id, coalesce(max_running, 1000000) - (
            SELECT count(*) FROM task
            WHERE api_key_id = api_key.id AND status IN ('queued', 'running') AND NOT barred
        ) AS free
        FROM api_key WHERE EXISTS (SELECT 1 FROM task WHERE api_key_id = api_key.id AND {_BARRED})
    ), admitted AS (
        SELECT next.id FROM place CROSS JOIN LATERAL (
            SELECT id FROM task WHERE api_key_id = place.id AND {_BARRED} AND {_DUE}
            ORDER BY priority DESC, seq LIMIT greatest(place.free, 0)
        ) next
    )
    UPDATE task SET barred = false FROM admitted WHERE task.id = admitted.id AND task.barred
    """  # noqa: S608 (constants)
)

# One at a time of each key; a row without a flow run goes back at once, a flow run has to be claimed first.
_GIVE_WAY = text(
    f"""
    WITH urgent AS (
        SELECT api_key_id, max(priority) AS priority FROM task WHERE {_BARRED} AND {_DUE} GROUP BY api_key_id
    ), gives_way AS (
        SELECT DISTINCT ON (api_key_id) task.id
        FROM urgent JOIN task USING (api_key_id)
        WHERE task.status = 'queued' AND NOT task.barred AND task.priority < urgent.priority
            AND task.phase IN ('waiting', 'ready') AND task.cancel_requested_at IS NULL
            AND NOT EXISTS (
                SELECT 1 FROM task going
                WHERE going.api_key_id = urgent.api_key_id AND going.status = 'queued' AND NOT going.barred
                    AND going.move_to IS NOT NULL
            )
        ORDER BY api_key_id, task.priority, task.seq DESC
    )
    UPDATE task SET barred = phase = 'waiting', move_to = CASE WHEN phase = 'ready' THEN priority END
    FROM gives_way
    WHERE task.id = gives_way.id AND status = 'queued' AND phase IN ('waiting', 'ready') AND move_to IS NULL
    """  # noqa: S608 (constants)
)


async def check_queue(session: AsyncSession, by: Author, adding: int = 1) -> None:
    """Make sure that the author's key may have `adding` more queued tasks, until the transaction ends.

    Raises:
        QueueLimitError: it may not.
    """
    key_id, max_queued = by.identity.key_id, by.limits.max_queued
    if key_id is None or max_queued is None:
        return
    await session.execute(_LOCK_QUEUE, {"key": str(key_id)})
    queued = select(func.count()).where(TASK.c.api_key_id == key_id, TASK.c.status == "queued")
    if (await session.scalar(queued) or 0) + adding > max_queued:
        raise QueueLimitError(
            f"This API key may have {max_queued} queued tasks at once.", retry_after_seconds=RETRY_SECONDS
        )


async def admit(session: AsyncSession) -> None:
    """Let barred tasks take free places of their keys, in the caller's transaction."""
    if not await session.scalar(_ANY_BARRED):
        return
    await session.execute(_LOCK_ADMISSION)
    await session.execute(_ADMIT)
    await session.execute(_GIVE_WAY)


def is_limited() -> ColumnElement[bool]:
    """Whether a task's key has a limit on running ones, for statements about `task`."""
    limited = select(API_KEY.c.id).where(API_KEY.c.max_running.is_not(None))
    return func.coalesce(TASK.c.api_key_id.in_(limited), False)
