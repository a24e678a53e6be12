"""Events as hints: a state change that Prefect announces is looked at a moment later, many at once."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from ai_task_orchestra.errors import DispatchError, UnreachableError
from api.database import raise_if_cancelled
from api.gateway import PAGE, PrefectGateway
from api.mirror import Mirror
from api.prefect_types import FlowRun, RunEvent
from api.wake import Alarm

logger = logging.getLogger(__name__)

#: Events come before their change is committed, and in bursts.
SETTLE_SECONDS: Final = 0.015
#: How often a change that can't be read yet is looked for again, each time after a longer pause.
TRIES: Final = 5
RECONNECT_SECONDS: Final = 1.0
NEVER: Final = UUID(int=0)


@dataclass(frozen=True)
class Hint:
    """What the latest event about a flow run said."""

    state_id: UUID | None
    occurred: datetime
    tries: int = 0


class Hints:
    """Follows Prefect's event stream; call `run` once."""

    def __init__(self, gateway: PrefectGateway, mirror: Mirror) -> None:
        self._gateway, self._mirror = gateway, mirror
        self._pending: dict[UUID, Hint] = {}
        self._alarm = Alarm()

    async def run(self) -> None:
        """Listen and look until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._look())

    async def _listen(self) -> None:
        connected = True
        while True:
            try:
                async with self._gateway.events() as events:
                    logger.info("events_connected")
                    connected = True
                    async for event in events:
                        self._note(event)
            except (UnreachableError, DispatchError) as exc:
                if connected:  # once per outage
                    logger.warning("events_lost", extra={"reason": str(exc)})
                connected = False
            await asyncio.sleep(RECONNECT_SECONDS)

    def _note(self, event: RunEvent) -> None:
        known = self._pending.get(event.flow_run_id)
        if known is None or known.occurred <= event.occurred:
            self._pending[event.flow_run_id] = Hint(event.state_id, event.occurred)
        self._alarm.ring()

    async def _look(self) -> None:
        while True:
            await self._alarm.wait(60.0)
            while self._pending:
                most_tried = max(hint.tries for hint in self._pending.values())
                await asyncio.sleep(SETTLE_SECONDS * 2**most_tried)
                batch = dict(list(self._pending.items())[:PAGE])
                for run_id in batch:
                    del self._pending[run_id]
                await self._look_at(batch)

    async def _look_at(self, batch: dict[UUID, Hint]) -> None:
        """Read the runs whose announced state is not mirrored yet: what we did ourselves is news to nobody."""
        try:
            known = await self._mirror.known_states(batch.keys())
            news = {run_id: hint for run_id, hint in batch.items() if hint.state_id != known.get(run_id, NEVER)}
            runs = await self._mirror.reconcile(news.keys())
        except (UnreachableError, DispatchError, SQLAlchemyError, OSError) as exc:
            raise_if_cancelled()
            logger.warning("hints_dropped", extra={"count": len(batch), "reason": type(exc).__name__})
            return  # the regular looks will find it
        for run_id, hint in news.items():
            if _is_early(runs.get(run_id), hint) and hint.tries < TRIES:
                self._pending.setdefault(run_id, Hint(hint.state_id, hint.occurred, hint.tries + 1))


def _is_early(run: FlowRun | None, hint: Hint) -> bool:
    """Whether the announced change can't be read yet."""
    if hint.state_id is None:
        return False
    return run is None or (run.state.id != hint.state_id and run.state.timestamp < hint.occurred)
