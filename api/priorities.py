"""Changing the priority of a queued task.

Prefect can't move a run to another queue, so the run is claimed as a worker would (accepted means that nobody runs
it), taken out of the row, deleted, and created again one generation up:

1. the wish is written to the row (`move_to`);
2. the flow run is claimed, under an id that tells us after a crash that it was us;
3. in one transaction the row gets its priority and the next generation, and the old run is put down for deletion;
4. the old run is deleted; the dispatcher creates the new one in its queue.

A process that dies after 1 or 2 is replaced by the leader's `perform`, after 3 by the dispatcher. Several may do the
same at once: each step does nothing the second time.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from typing import Final
from uuid import UUID

from ai_task_orchestra.errors import ConflictError, DispatchError, NotFoundError, UnreachableError
from api import live_store
from api.claims import Claim, claim
from api.database import Sessions
from api.gateway import PrefectGateway
from api.live_store import LiveTask
from api.mirror import Mirror
from api.models import Phase
from api.prefect_http import PrefectUnreachableError
from api.prefect_types import CANCELLED
from api.transitions import MOVE
from api.wake import Wake

logger = logging.getLogger(__name__)

#: How long a request waits for a flow run that is just being created or released.
PATIENCE_SECONDS: Final = 5.0
#: How long it waits at the end for the new flow run, so that the next free slot sees the new order.
ARRIVAL_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.02


class Move(enum.Enum):
    """How a step towards the new priority ended."""

    MOVED = enum.auto()
    #: A worker has the run.
    REFUSED = enum.auto()
    #: The run is being created or released just now.
    LATER = enum.auto()
    #: There is nothing to move (any more).
    NOTHING = enum.auto()


class Priorities:
    """Moves queued tasks between priorities."""

    def __init__(self, sessions: Sessions, gateway: PrefectGateway, mirror: Mirror, wake: Wake) -> None:
        self._sessions, self._gateway, self._mirror, self._wake = sessions, gateway, mirror, wake

    async def change(self, task_id: UUID, priority: int) -> None:
        """Give a queued task another priority.

        Raises:
            NotFoundError, ConflictError: there is no such task, or it is not queued any more.
            UnreachableError: its flow run has to move and Prefect does not answer. Nothing has changed, unless the
                run may have been claimed: then the leader moves it once Prefect answers.
        """
        done, earlier = await self._wish(task_id, priority)
        if done:
            return
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while (move := await self.perform(task_id)) is Move.LATER:
                if time.monotonic() > deadline:
                    raise UnreachableError("The task's flow run is just being created; try again.")
                await asyncio.sleep(_PAUSE_SECONDS)
        except UnreachableError as exc:
            if not (isinstance(exc, PrefectUnreachableError) and exc.sent):
                await self._forget(task_id, priority, earlier)
            raise
        if move is Move.REFUSED or (move is Move.NOTHING and not await self._has(task_id, priority)):
            raise ConflictError("The task has just been started; only queued tasks have a priority to change.")
        await self._arrival(task_id)

    async def perform(self, task_id: UUID) -> Move:
        """Do steps 2 to 4 for a row that wishes to be moved.

        Raises:
            UnreachableError, DispatchError: Prefect did not take it; to be repeated.
        """
        async with self._sessions.single() as session:
            task = await live_store.read(session, task_id)
        if task is None or task.is_final or task.move_to is None:
            return Move.NOTHING
        if task.status != "queued" or task.cancel_requested_at is not None:
            return await self._refuse(task)
        if task.flow_run_id is None or task.phase == Phase.CREATING:
            return Move.LATER
        taken = await claim(self._gateway, task.flow_run_id, MOVE)
        if taken is Claim.BUSY:
            return Move.LATER
        if taken is Claim.OURS:
            return await self._replace(task, task.flow_run_id)
        await self._mirror.reconcile([task.flow_run_id])
        return await self._refuse(task)

    async def _wish(self, task_id: UUID, priority: int) -> tuple[bool, int | None]:
        """Step 1. (whether that was all, the wish that stood there before)."""
        async with self._sessions.begin() as session:
            task = await live_store.lock(session, task_id)
            if task is None:
                raise NotFoundError("There is no task with this id.")
            if task.status != "queued" or task.cancel_requested_at is not None:
                word = task.status if task.cancel_requested_at is None else "being cancelled"
                raise ConflictError(f"Only queued tasks have a priority to change; this one is {word}.")
            if task.deployment_id is None and task.adopted:
                raise ConflictError("A flow run without a deployment can't be moved to another priority.")
            if task.phase == Phase.WAITING:
                await live_store.write(session, task, priority=priority)
                await self._wake.announce(session)
            elif task.priority == priority and task.move_to is None:
                return True, None
            else:
                await live_store.write(session, task, move_to=priority)
                return False, task.move_to
        self._wake.dispatch()
        return True, None

    async def _replace(self, task: LiveTask, run_id: UUID) -> Move:
        """Steps 3 and 4; the claimed run is nobody's but ours."""
        async with self._sessions.begin() as session:
            now = await live_store.lock(session, task.id)
            if now is None or now.generation != task.generation or now.flow_run_id != run_id:
                return Move.NOTHING  # somebody else did it
            if now.cancel_requested_at is None and not now.is_final:
                await live_store.begin_again(session, now, not_before=now.not_before)
                await live_store.dispose(session, run_id, task.id, live_store.DELETE)
                await self._wake.announce(session)
        if now.cancel_requested_at is not None or now.is_final:
            await self._gateway.propose(run_id, CANCELLED, message="Cancelled through the API.", force=True)
            await self._mirror.reconcile([run_id])
            return Move.REFUSED
        self._wake.dispatch()
        logger.info("task_moved", extra={"task_id": str(task.id), "flow_run_id": str(run_id), "priority": now.move_to})
        try:
            await self._gateway.delete_run(run_id)
        except (UnreachableError, DispatchError) as exc:  # it is put down for deletion
            logger.warning("delete_postponed", extra={"flow_run_id": str(run_id), "reason": str(exc)})
        else:
            async with self._sessions.begin() as session:
                await live_store.disposed(session, run_id)
        return Move.MOVED

    async def _refuse(self, task: LiveTask) -> Move:
        """A worker has the run; unless somebody else has moved the task meanwhile, and the run is gone for that."""
        async with self._sessions.begin() as session:
            now = await live_store.lock(session, task.id)
            if now is not None and now.generation != task.generation:
                return Move.NOTHING
            await live_store.forget_move(session, task.id, generation=task.generation)
        return Move.REFUSED

    async def _forget(self, task_id: UUID, priority: int, earlier: int | None) -> None:
        """Take our wish back. For an earlier one the run may be claimed already: that one must be carried through."""
        async with self._sessions.begin() as session:
            await live_store.forget_move(session, task_id, priority=priority, earlier=earlier)

    async def _has(self, task_id: UUID, priority: int) -> bool:
        """Whether the task got this priority, or one that somebody else wished for after us."""
        async with self._sessions.single() as session:
            task = await live_store.read(session, task_id)
        return task is not None and task.status == "queued" and (task.priority == priority or task.move_to is not None)

    async def _arrival(self, task_id: UUID) -> None:
        """Wait for the new flow run; not long, since it may be none of the most urgent ones."""
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while time.monotonic() < deadline:
            async with self._sessions.single() as session:
                task = await live_store.read(session, task_id)
            if task is None or task.phase not in (Phase.WAITING, Phase.CREATING):
                return
            await asyncio.sleep(_PAUSE_SECONDS)
