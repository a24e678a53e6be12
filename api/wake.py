"""Telling the dispatcher that there is something to do: in this process at once, in another one by NOTIFY."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

CHANNEL: Final = "orchestra_dispatch"

_NOTIFY = text(f"SELECT pg_notify('{CHANNEL}', '')")


class Alarm:
    """Rings once for any number of reasons."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake whoever waits, or who will wait next."""
        self._event.set()

    async def wait(self, timeout_seconds: float) -> None:
        """Return when rung, or after `timeout_seconds` at the latest; forgets the ringing.

        Not by `asyncio.wait_for`: before Python 3.12 it swallows a cancellation that comes together with the ringing.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        self._event.clear()


class Wake:
    """The dispatcher's alarm. `leading` is True while this process is the one that dispatches."""

    def __init__(self) -> None:
        self.leading = False
        self._alarm = Alarm()

    async def announce(self, session: AsyncSession) -> None:
        """Before a commit: have the leader woken by it, if that is another process."""
        if not self.leading:
            await session.execute(_NOTIFY)

    def dispatch(self) -> None:
        """After a commit: wake the dispatcher of this process, if it is running."""
        self._alarm.ring()

    async def wait(self, timeout_seconds: float) -> None:
        """Return when woken, or after `timeout_seconds` at the latest."""
        await self._alarm.wait(timeout_seconds)
