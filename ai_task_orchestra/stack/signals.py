"""Ctrl-C and SIGTERM as two wishes: stop, and stop now."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

SAME_WISH_SECONDS = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While open, the first signal sets `asked`; one that comes later than 2 s after it sets `now`.

    Signals close together are one wish: a Ctrl-C often comes twice, once from the terminal and once from a parent
    that passes it on (make, a service manager).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()
        self._clock = clock
        self._first: float | None = None

    def __enter__(self) -> StopSignals:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.receive)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            if self._first is not None:
                # Everything is stopped and the process is about to end: an impatient third one changes nothing.
                signal.signal(number, signal.SIG_IGN)

    def receive(self) -> None:
        """One signal."""
        if self._first is None:
            self._first = self._clock()
            self.asked.set()
        elif self._clock() - self._first > SAME_WISH_SECONDS:
            self.now.set()
