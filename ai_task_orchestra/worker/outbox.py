"""Ships the log lines and events of all children to Prefect, many in one request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

import httpx
from prefect.client.orchestration import PrefectClient

from ai_task_orchestra.worker.child_link import Message
from ai_task_orchestra.worker.patient_client import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, is_unreachable

_log = logging.getLogger(__name__)

# How long after the first thing to ship everything is shipped that has come meanwhile.
_INTERVAL_SECONDS: Final = 0.5
_LINES_PER_REQUEST: Final = 500
_EVENTS_PER_REQUEST: Final = 200
_BYTES_PER_REQUEST: Final = 2_000_000
# While Prefect is away everything waits in memory; of more than this many the oldest are dropped.
_MOST_KEPT: Final = 50_000

_FINAL: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})

Item = dict[str, Any]


class Outbox:
    """Holds what children have relayed until Prefect has it. Its client is expected not to wait by itself."""

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._lines: deque[Item] = deque(maxlen=_MOST_KEPT)
        self._events: deque[Item] = deque(maxlen=_MOST_KEPT)
        self._something = asyncio.Event()
        self._shipping = asyncio.Lock()

    def take(self, message: Message) -> None:
        """Keep what a child relays."""
        self._lines += message["lines"]
        self._events += message["events"]
        self._something.set()

    @contextlib.asynccontextmanager
    async def running(self, last_seconds: float) -> AsyncIterator[None]:
        """Ship while this context is open; at its end what is left, if Prefect takes it within `last_seconds`."""
        shipping = asyncio.create_task(self._ship_regularly())
        try:
            yield
        finally:
            shipping.cancel()
            with contextlib.suppress(httpx.HTTPError, TimeoutError):
                async with asyncio.timeout(last_seconds):
                    await self.ship()
            if left := len(self._lines) + len(self._events):
                _log.warning("worker.outbox_not_empty", extra={"items": left})

    async def _ship_regularly(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            await self._something.wait()
            await asyncio.sleep(_INTERVAL_SECONDS)
            self._something.clear()
            try:
                await asyncio.shield(asyncio.create_task(self.ship()))
                pause = FIRST_PAUSE_SECONDS
            except httpx.HTTPError as exc:
                _log.debug("worker.outbox_waits", extra={"error": type(exc).__name__})
                self._something.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def ship(self) -> None:
        """Send everything kept so far; what Prefect refuses is dropped, and that is logged.

        Raises:
            httpx.HTTPError: Prefect is unreachable; what was not sent is kept.
        """
        async with self._shipping:
            latest = _latest(self._events)
            self._events = deque(latest, maxlen=_MOST_KEPT)
            await self._ship(self._lines, _LINES_PER_REQUEST, self._send_lines)
            await self._ship(self._events, _EVENTS_PER_REQUEST, self._send_events)

    async def _ship(self, items: deque[Item], most: int, send: Callable[[list[Item]], Awaitable[Any]]) -> None:
        while items:
            batch = _batch(items, most)
            try:
                await send(batch)
            except httpx.HTTPError as exc:
                if is_unreachable(exc):
                    items.extendleft(reversed(batch))
                    raise
                _log.warning("worker.outbox_refused", extra={"items": len(batch), "error": type(exc).__name__})

    async def _send_lines(self, lines: list[Item]) -> None:
        await self._client.create_logs([{k: v for k, v in line.items() if k != "__payload_size__"} for line in lines])

    async def _send_events(self, events: list[Item]) -> None:
        await self._client.request("POST", "/events", json=events)


def _batch(items: deque[Item], most: int) -> list[Item]:
    batch: list[Item] = []
    size = 0
    while items and len(batch) < most and size < _BYTES_PER_REQUEST:
        item = items.popleft()
        size += item.get("__payload_size__", 0)
        batch.append(item)
    return batch


def _latest(events: Iterable[Item]) -> list[Item]:
    """Without the beginnings of steps that have ended meanwhile: the last event of a step says all that they said.

    Prefect writes each event into three tables, hands it to four services and, of a step, makes a row of the latest.
    """
    listed = list(events)
    ended = {_subject(event) for event in listed if _is_end(event)}
    kept = []
    for event in listed:
        if _subject(event) in ended and event["event"].startswith("prefect.task-run."):
            if not _is_end(event):
                continue
            event = event | {"follows": None}  # what it followed will not be there to be waited for
        kept.append(event)
    return kept


def _subject(event: Item) -> str:
    return str(event["resource"].get("prefect.resource.id"))


def _is_end(event: Item) -> bool:
    return event["resource"].get("prefect.state-type") in _FINAL
