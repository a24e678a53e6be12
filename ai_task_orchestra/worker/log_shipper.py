"""Ships a run's log lines over the child's own connection, instead of a thread with a second client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.logging.handlers import set_api_log_sink

from ai_task_orchestra.redaction import without_secrets

_log = logging.getLogger(__name__)

_INTERVAL_SECONDS: Final = 1.0
_LINES_PER_REQUEST: Final = 500
_BYTES_PER_REQUEST: Final = 2_000_000
# While Prefect is away lines wait in memory; of more than this many the oldest are dropped.
_MOST_LINES: Final = 50_000


class LogShipper:
    """Collects what Prefect's log handler emits, from any thread, and sends it every second and at the end."""

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._lines: deque[dict[str, Any]] = deque(maxlen=_MOST_LINES)
        self._sending = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def collecting(self, flush_seconds: float) -> AsyncIterator[None]:
        """Take over Prefect's log lines; what was logged until the end has arrived when this context ends.

        `flush_seconds` bounds the last sending, in case Prefect is away.
        """
        set_api_log_sink(self._lines.append)
        shipping = asyncio.create_task(self._ship_regularly())
        try:
            yield
        finally:
            set_api_log_sink(None)
            shipping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await shipping
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(flush_seconds):
                    await self.ship()

    async def ship(self) -> None:
        """Send everything collected so far. Lines that Prefect refuses are dropped, and that is logged."""
        async with self._sending:
            while self._lines:
                batch = self._batch()
                try:
                    await self._client.create_logs(batch)
                except httpx.HTTPError as exc:
                    _log.warning("worker.log_lines_lost", extra={"lines": len(batch), "error": type(exc).__name__})

    async def _ship_regularly(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            # A cancelled request could have arrived or not: let it end.
            await asyncio.shield(asyncio.create_task(self.ship()))

    def _batch(self) -> list[dict[str, Any]]:
        size = 0
        batch = []
        for _ in itertools.repeat(None, min(_LINES_PER_REQUEST, len(self._lines))):
            line = self._lines.popleft()
            size += line.pop("__payload_size__", 0)
            line["message"] = without_secrets(line["message"])
            batch.append(line)
            if size > _BYTES_PER_REQUEST:
                break
        return batch
