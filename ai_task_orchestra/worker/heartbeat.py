"""Tells Prefect that the worker is alive: others take a worker that stops saying so, and its runs, for lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import httpx

from ai_task_orchestra.worker.prefect_gateway import PrefectGateway

_log = logging.getLogger(__name__)

# The work pool is looked at again (it may have been deleted and made anew) after this many heartbeats.
_SYNC_EVERY: Final = 12


class Heartbeat:
    """Beats every `seconds`, whatever else the worker does; a beat that fails is not repeated, the next one follows."""

    def __init__(self, gateway: PrefectGateway, *, seconds: float, sync: Callable[[], Awaitable[None]]) -> None:
        """`sync`: synchronises the worker with its work pool, which includes a heartbeat."""
        self._gateway = gateway
        self._seconds = seconds
        self._sync = sync

    async def run(self) -> None:
        """Beat until cancelled."""
        beats = 0
        while True:
            await asyncio.sleep(self._seconds)
            beats += 1
            try:
                if beats % _SYNC_EVERY:
                    await self._gateway.heartbeat(self._seconds)
                else:
                    await self._sync()
            except httpx.HTTPError as exc:
                beats = -1  # after an outage: synchronise first
                _log.debug("worker.heartbeat_failed", extra={"error": type(exc).__name__})
