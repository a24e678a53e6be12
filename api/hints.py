"""Events as hints: a state change that Prefect announces is looked at a moment later, many at once."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from ai_task_orchestra.errors import DispatchError, UnreachableError
from ai_task_orchestra.protocol import STATE_HELD, STATE_QUEUED
from api.database import raise_if_cancelled
from api.gateway import PAGE, PrefectGateway
from api.live_store import Mirrored
from api.mirror import Mirror
from api.prefect_types import FlowRun, RunEvent
from api.wake import Alarm

logger = logging.getLogger(__name__)

#: Events come before their change is committed, and in bursts.
SETTLE_SECONDS: Final = 0.005
#: How often a change that can't be read yet is looked for again, each time after a longer pause.
TRIES: Final = 7
#: The busier Prefect is, the longer a look takes: after one, so many times as long passes until the next, which then
#: sees more. A short task is read once then, when it is over.
BREATHER: Final = 2.0
RECONNECT_SECONDS: Final = 1.0
#: Only we give runs these states, and the answer tells us more than the event.
OUR_STATES: Final = (STATE_QUEUED, STATE_HELD)


@dataclass(frozen=True)
class Hint:
    """What the latest event about a flow run said."""

    state_id: UUID | None
    occurred: datetime
    state_name: str | None = None
    tries: int = 0


class Hints:
    """Follows Prefect's event stream; call `run` once."""

    def __init__(self, gateway: PrefectGateway, mirror: Mirror) -> None:
        self._gateway, self._mirror = gateway, mirror
        self._pending: dict[UUID, Hint] = {}
        self._alarm = Alarm()
        self._not_before = 0.0

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
            self._pending[event.flow_run_id] = Hint(event.state_id, event.occurred, event.state_name)
        self._alarm.ring()

    async def _look(self) -> None:
        while True:
            await self._alarm.wait(60.0)
            while self._pending:
                most_tried = max(hint.tries for hint in self._pending.values())
                breather = self._not_before - time.monotonic()
                await asyncio.sleep(max(SETTLE_SECONDS * 2**most_tried, breather))
                batch = dict(list(self._pending.items())[:PAGE])
                for run_id in batch:
                    del self._pending[run_id]
                await self._look_at(batch)

    async def _look_at(self, batch: dict[UUID, Hint]) -> None:
        """Read the runs whose announced state is not mirrored yet: what we did ourselves is news to nobody."""
        began = time.monotonic()
        try:
            known = await self._mirror.known(batch.keys())
            news = {run_id: hint for run_id, hint in batch.items() if _is_news(hint, known.get(run_id))}
            runs = await self._mirror.reconcile(news.keys())
        except (UnreachableError, DispatchError, SQLAlchemyError, OSError) as exc:
            raise_if_cancelled()
            logger.warning("hints_dropped", extra={"count": len(batch), "reason": type(exc).__name__})
            return  # the regular looks will find it
        finally:
            now = time.monotonic()
            self._not_before = now + BREATHER * (now - began)
        for run_id, hint in news.items():
            if _is_early(runs.get(run_id), hint) and hint.tries < TRIES:
                self._pending.setdefault(run_id, replace(hint, tries=hint.tries + 1))


def _is_news(hint: Hint, known: Mirrored | None) -> bool:
    """Not what is mirrored already, nor what we do ourselves; but a run that its worker gives back is news."""
    if known is None:
        return hint.state_name not in OUR_STATES
    return known.state_id != hint.state_id and (hint.state_name not in OUR_STATES or known.worker is not None)


def _is_early(run: FlowRun | None, hint: Hint) -> bool:
    """Whether the announced change can't be read yet."""
    if hint.state_id is None:
        return False
    return run is None or (run.state.id != hint.state_id and run.state.timestamp < hint.occurred)
