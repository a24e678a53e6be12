"""Once a second: what was begun and not finished, here or by a process that is gone."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ai_task_orchestra.errors import DispatchError
from api import live_store
from api.cancellation import FORCE_SECONDS, Cancellation
from api.dispatch_store import DispatchStore
from api.gateway import PrefectGateway
from api.prefect_types import CANCELLED, CANCELLING, FINAL_STATES
from api.priorities import Priorities

logger = logging.getLogger(__name__)


class Chores:
    """Cancels, moves and disposals that are not done yet."""

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        gateway: PrefectGateway,
        cancellation: Cancellation,
        priorities: Priorities,
    ) -> None:
        self._sessions, self._gateway = sessions, gateway
        self._cancellation, self._priorities = cancellation, priorities
        self._store = DispatchStore(sessions)

    async def do(self) -> None:
        """Bring each one step further. One that Prefect refuses does not keep the others back.

        Raises:
            UnreachableError: Prefect does not answer.
        """
        for task_id in await self._store.cancelling():
            try:
                await self._cancellation.pursue(task_id)
            except DispatchError as exc:
                logger.warning("cancel_refused", extra={"task_id": str(task_id), "reason": str(exc)})
        for task_id in await self._store.moving():
            try:
                await self._priorities.perform(task_id)
            except DispatchError as exc:
                logger.warning("move_refused", extra={"task_id": str(task_id), "reason": str(exc)})
        for run_id, action, since in await self._store.disposals():
            try:
                await self._dispose(run_id, action, since)
            except DispatchError as exc:
                logger.warning("disposal_refused", extra={"flow_run_id": str(run_id), "reason": str(exc)})

    async def _dispose(self, run_id: UUID, action: str, since: datetime) -> None:
        gone = True
        if action == live_store.DELETE:
            await self._gateway.delete_run(run_id)
        else:
            gone = await self._cancel(run_id, since)
        if gone:
            async with self._sessions.begin() as session:
                await live_store.disposed(session, run_id)

    async def _cancel(self, run_id: UUID, since: datetime) -> bool:
        """True when the run is over."""
        run = (await self._gateway.runs([run_id])).get(run_id)
        if run is None or run.state.type in FINAL_STATES:
            return True
        overdue = datetime.now(UTC) - since > timedelta(seconds=FORCE_SECONDS)
        wanted = CANCELLED if overdue else CANCELLING
        if run.state.type == wanted or (run.state.is_being_held and not overdue):
            return False
        message = "Its task is over."
        answer = await self._gateway.propose(run_id, wanted, message=message, force=overdue)
        return answer is None or (answer.state is not None and answer.state.type in FINAL_STATES)
