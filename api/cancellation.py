"""Cancelling a task.

1. The intent is written to the row; from here on the task will end (a process that dies is replaced by the leader).
2. A task without a flow run is cancelled there and then.
3. Else Prefect is asked for Cancelling. A run that nobody has started becomes Cancelled at once, in the same step, so
   no worker can slip in between; a claimed or running one is stopped by its worker, which then says Cancelled.
4. What has not stopped after `FORCE_SECONDS` is forced to Cancelled.
5. The row follows Prefect (`api.mirror`): work that was completed before stays completed. But once the wish has been
   accepted, because Prefect took it or did not answer, the task ends as cancelled, and Prefect is brought in line.
"""

from __future__ import annotations

import logging
from typing import Final
from uuid import UUID

from sqlalchemy import func

from ai_task_orchestra.errors import ConflictError, DispatchError, NotFoundError, UnreachableError
from api import live_store
from api.database import Sessions
from api.gateway import PrefectGateway
from api.live_store import LiveTask
from api.mirror import Mirror
from api.models import Phase
from api.prefect_types import CANCELLED, CANCELLING, FINAL_STATES, FlowRun
from api.transitions import transition_id
from api.wake import Wake

logger = logging.getLogger(__name__)

FORCE_SECONDS: Final = 8.0
MESSAGE: Final = "Cancelled through the API."
FORCED_MESSAGE: Final = f"Cancelled through the API; its worker did not confirm within {FORCE_SECONDS:g} s."


class Cancellation:
    """Records the wish to cancel, and pursues it."""

    def __init__(self, sessions: Sessions, gateway: PrefectGateway, mirror: Mirror, wake: Wake) -> None:
        self._sessions, self._gateway, self._mirror, self._wake = sessions, gateway, mirror, wake

    async def request(self, task_id: UUID) -> None:
        """Record that the task is to be cancelled and begin; Prefect need not be there.

        Raises:
            NotFoundError: there is no such task.
            ConflictError: it is completed or failed.
        """
        async with self._sessions.begin() as session:
            task = await live_store.lock(session, task_id)
            if task is None:
                raise NotFoundError("There is no task with this id.")
            if task.status == "cancelled":
                return
            if task.is_final:
                raise ConflictError(f"The task is {task.status} already.")
            await self._wake.announce(session)
            logger.info("task_cancel_requested", extra={"task_id": str(task_id)})
            if task.phase == Phase.WAITING:
                await live_store.finish(session, task, "cancelled")
                self._wake.dispatch()
                return
            asked = task.cancel_requested_at or func.now()
            await live_store.write(session, task, cancel_requested_at=asked)
        self._wake.dispatch()
        try:
            await self.pursue(task_id)
        except (UnreachableError, DispatchError) as exc:
            logger.warning("cancel_postponed", extra={"task_id": str(task_id), "reason": str(exc)})
        await self._promise(task_id)

    async def _promise(self, task_id: UUID) -> None:
        """A task that is not over by now ends as cancelled: its client is told so."""
        async with self._sessions.begin() as session:
            task = await live_store.lock(session, task_id)
            if task is not None and not task.is_final and task.cancelling_seconds is None:
                await live_store.write(session, task, cancelling_since=func.now())

    async def pursue(self, task_id: UUID) -> None:
        """Bring the cancelling of a task one step further.

        Raises:
            UnreachableError, DispatchError: Prefect did not take it; to be repeated.
        """
        async with self._sessions.begin() as session:
            task = await live_store.lock(session, task_id)
            if task is None or task.is_final or task.cancel_requested_at is None:
                return
            if task.phase == Phase.WAITING:  # another attempt was about to follow
                await live_store.finish(session, task, "cancelled")
                self._wake.dispatch()
                return
        if task.flow_run_id is None:
            return  # it is being created; the dispatcher will cancel it
        run = (await self._gateway.runs([task.flow_run_id])).get(task.flow_run_id)
        if run is not None and run.state.type not in FINAL_STATES and not run.state.is_being_held:
            await self._stop(task, run)
        await self._mirror.reconcile([task.flow_run_id])

    async def _stop(self, task: LiveTask, run: FlowRun) -> None:
        """Ask for Cancelling once, then wait, then force."""
        if run.state.type != CANCELLING:
            await self._gateway.propose(
                run.id, CANCELLING, message=MESSAGE, transition_id=transition_id(run.id, "cancel")
            )
        elif nobody_runs(task, run) or _is_overdue(task):
            logger.warning("cancel_forced", extra={"task_id": str(task.id), "flow_run_id": str(run.id)})
            await self._gateway.propose(run.id, CANCELLED, message=FORCED_MESSAGE, force=True)


def nobody_runs(task: LiveTask, run: FlowRun) -> bool:
    """A run that only we had claimed, to release it, is stopped by nobody else."""
    return task.phase == Phase.HELD and run.worker is None and run.start_time is None


def _is_overdue(task: LiveTask) -> bool:
    return task.cancelling_seconds is not None and task.cancelling_seconds > FORCE_SECONDS
