"""SIGTERM and SIGINT: the first asks the worker to finish, the second means now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from typing import Any, Final, Self, TypeVar

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context manager inside a running event loop: the signals are events, and nothing else, while it is open."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.now = asyncio.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            # Outside the main thread signals are somebody else's business.
            with contextlib.suppress(ValueError, RuntimeError):
                self._before[number] = signal.getsignal(number)
                loop.add_signal_handler(number, self._take, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            with contextlib.suppress(ValueError, RuntimeError, TypeError):
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, handler)

    async def first_of(self, work: Coroutine[Any, Any, _T], event: asyncio.Event) -> _T | None:
        """The result of `work`, or None if `event` comes first; then `work` is cancelled."""
        working = asyncio.ensure_future(work)
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            waiting.cancel()
            working.cancel()

    def _take(self, number: signal.Signals) -> None:
        _log.info("worker.signal", extra={"signal": number.name})
        if self.requested.is_set():
            self.now.set()
        self.requested.set()
