"""Several API processes may serve one database; one of them leads: it dispatches, mirrors and judges leases.

The lead is an advisory lock on a connection of its own, so PostgreSQL gives it to another process the moment this one
or its connection dies. From a process that is frozen, or on a machine that is cut off, PostgreSQL takes it once the
connection was silent for `SILENT_SECONDS`. Whatever two leaders may do at the same time for a moment is safe to do
twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from ai_task_orchestra.errors import DispatchError, UnreachableError
from api.database import CONNECT_SECONDS, plain_url, raise_if_cancelled
from api.wake import CHANNEL, Wake

logger = logging.getLogger(__name__)

#: "orchestra" as a number; advisory locks are per database.
LOCK: Final = 0x6F72636865737472
RETRY_SECONDS: Final = 1.0
#: The connection that holds the lock is tried this often.
PULSE_SECONDS: Final = 1.0
PULSE_TIMEOUT_SECONDS: Final = 5.0
#: Longer than a pulse may take: who can't reach PostgreSQL stops working before another one begins.
SILENT_SECONDS: Final = 10

_LOST: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


class Leader:
    """Runs `work` while this process leads, again after every loss."""

    def __init__(self, database_url: str, wake: Wake, work: Callable[[], Awaitable[None]]) -> None:
        self._database_url, self._wake, self._work = plain_url(database_url), wake, work

    async def run(self) -> None:
        """Try to lead, until cancelled."""
        complained = False
        while True:
            try:
                await self._lead()
                complained = False
            except _LOST as exc:
                raise_if_cancelled()
                if not complained:
                    logger.warning("leader_database_lost", extra={"reason": type(exc).__name__})
                complained = True
            await asyncio.sleep(RETRY_SECONDS)

    async def _lead(self) -> None:
        """1. connect; 2. get the lock, or return; 3. listen; 4. work until the connection or the work breaks."""
        connection = await asyncpg.connect(self._database_url, timeout=CONNECT_SECONDS)
        try:
            await connection.execute(f"SET idle_session_timeout = '{SILENT_SECONDS}s'")
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
                return
            await connection.add_listener(CHANNEL, lambda *_: self._wake.dispatch())
            logger.info("leader_elected")
            self._wake.leading = True
            await self._work_while(connection)
        finally:
            self._wake.leading = False
            connection.terminate()

    async def _work_while(self, connection: asyncpg.Connection[Any]) -> None:
        """Work until the connection breaks; a bug in the work is logged and the work begun anew."""
        work = asyncio.ensure_future(self._work())
        pulse = asyncio.create_task(_pulse(connection))
        try:
            await asyncio.wait((work, pulse), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, pulse):
                task.cancel()
            ended = await asyncio.gather(work, pulse, return_exceptions=True)
        for error in ended:
            if isinstance(error, _LOST):
                raise error
            if isinstance(error, Exception):
                logger.error("leader_work_failed", exc_info=error)


async def _pulse(connection: asyncpg.Connection[Any]) -> None:
    while True:
        await asyncio.sleep(PULSE_SECONDS)
        await connection.execute("SELECT 1", timeout=PULSE_TIMEOUT_SECONDS)


async def regularly(name: str, seconds: float, look: Callable[[], Awaitable[None]]) -> None:
    """Call `look` every `seconds` until cancelled. A failure is logged when it begins and when it is over."""
    failing = False
    while True:
        try:
            await look()
        except (UnreachableError, DispatchError, SQLAlchemyError, OSError) as exc:
            raise_if_cancelled()
            if not failing:
                reason = str(exc) if isinstance(exc, UnreachableError | DispatchError) else type(exc).__name__
                logger.warning("look_failed", extra={"look": name, "reason": reason})
            failing = True
        except Exception:
            logger.exception("look_broken", extra={"look": name})
            failing = True
        else:
            if failing:
                logger.info("look_works_again", extra={"look": name})
            failing = False
        await asyncio.sleep(seconds)
