"""Once a second: what was begun and not finished, here or by a process that is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar
from uuid import UUID

from ai_task_orchestra.errors import DispatchError
from api import live_store
from api.cancellation import FORCE_SECONDS, MESSAGE, Cancellation
from api.database import Sessions
from api.dispatch_store import DispatchStore
from api.gateway import PrefectGateway
from api.prefect_types import CANCELLED, CANCELLING, FINAL_STATES
from api.priorities import Priorities

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")

#: Chores at once, beside the dispatcher's own hands.
HANDS: Final = 6


class Chores:
    """Cancels, moves and disposals that are not done yet."""

    def __init__(
        self,
        sessions: Sessions,
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
        await _each(await self._store.cancelling(), self._cancellation.pursue)
        await _each(await self._store.moving(), self._priorities.perform)
        disposals = await self._store.disposals(overdue_seconds=FORCE_SECONDS)
        await _each(disposals, lambda disposal: self._dispose(*disposal))

    async def _dispose(self, run_id: UUID, action: str, overdue: bool) -> None:
        gone = True
        if action == live_store.DELETE:
            await self._gateway.delete_run(run_id)
        elif action == live_store.OVERRULE:
            await self._gateway.propose(run_id, CANCELLED, message=MESSAGE, force=True)
        else:
            gone = await self._cancel(run_id, overdue)
        if gone:
            async with self._sessions.begin() as session:
                await live_store.disposed(session, run_id)

    async def _cancel(self, run_id: UUID, overdue: bool) -> bool:
        """True when the run is over."""
        run = (await self._gateway.runs([run_id])).get(run_id)
        if run is None or run.state.type in FINAL_STATES:
            return True
        wanted = CANCELLED if overdue else CANCELLING
        if run.state.type == wanted or (run.state.is_being_held and not overdue):
            return False
        message = "Its task is over."
        answer = await self._gateway.propose(run_id, wanted, message=message, force=overdue)
        return answer is None or (answer.state is not None and answer.state.type in FINAL_STATES)


async def _each(items: Iterable[_Item], step: Callable[[_Item], Awaitable[object]]) -> None:
    """Do `step` for every item, several at once; an outage ends it, a refusal only that item's."""
    hands = asyncio.Semaphore(HANDS)

    async def do(item: _Item) -> None:
        async with hands:
            try:
                await step(item)
            except DispatchError as exc:
                logger.warning("chore_refused", extra={"item": str(item), "reason": str(exc)})

    done = await asyncio.gather(*(do(item) for item in items), return_exceptions=True)
    for error in done:
        if isinstance(error, BaseException):
            raise error
