"""One subscription to Prefect's events for the whole worker: what became due, what is to be cancelled.

Events are hints: they may be lost, and come before the change they tell of is committed. Everything that listens here
looks for itself, and also looks regularly without being told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final
from uuid import UUID

from prefect.events import Event
from prefect.events.clients import PrefectEventSubscriber, get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

from ai_task_orchestra import protocol
from ai_task_orchestra.worker.patient_client import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS

_log = logging.getLogger(__name__)

_FAREWELL_SECONDS: Final = 1.0
_PREFIX: Final = "prefect.flow-run."
DUE: Final = frozenset({_PREFIX + protocol.STATE_QUEUED, _PREFIX + "Scheduled"})
ENDED: Final = frozenset({_PREFIX + "Cancelling", _PREFIX + "Cancelled"})


@contextlib.asynccontextmanager
async def _closed_quickly(subscriber: PrefectEventSubscriber) -> AsyncIterator[None]:
    """Open while it lasts; a server that does not answer can't hold us up with a farewell."""
    await subscriber.__aenter__()
    try:
        yield
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await subscriber.__aexit__(None, None, None)


class EventSubscription:
    """Listens for as long as it runs, and connects again whenever the connection is lost."""

    def __init__(
        self,
        pool_id: Callable[[], UUID],
        *,
        on_due: Callable[[UUID, int], None],
        on_cancel: Callable[[UUID], None],
        on_connected: Callable[[], None],
    ) -> None:
        """`on_due`: gets a run and its priority. `on_connected`: called after each gap in which events may be missed."""
        self._pool_id = pool_id
        self._on_due = on_due
        self._on_cancel = on_cancel
        self._on_connected = on_connected

    async def run(self) -> None:
        """Listen until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                subscriber = get_events_subscriber(filter=self._filter(), reconnection_attempts=0)
                async with _closed_quickly(subscriber):
                    _log.debug("worker.events_connected")
                    pause = FIRST_PAUSE_SECONDS
                    self._on_connected()
                    async for event in subscriber:
                        self._take(event)
            except Exception as exc:  # websockets, sockets and Prefect each raise their own kinds
                _log.debug("worker.events_disconnected", extra={"error": f"{type(exc).__name__}: {exc}"})
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _filter(self) -> EventFilter:
        return EventFilter(
            event=EventNameFilter(name=sorted(DUE | ENDED)),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{self._pool_id()}"]),
        )

    def _take(self, event: Event) -> None:
        run_id = UUID(event.resource.id.removeprefix(_PREFIX))
        if event.event in DUE:
            self._on_due(run_id, _priority(event))
        else:
            self._on_cancel(run_id)


def _priority(event: Event) -> int:
    """That of the queue in which the run is; of one that does not say, the highest, to be on the safe side."""
    for resource in event.related:
        if resource.role == "work-queue":
            return protocol.priority_of_queue(resource.name)
    return max(protocol.PRIORITIES)
