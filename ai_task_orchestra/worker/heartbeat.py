"""Tells Prefect that the worker is alive, and stops all runs when nobody may have heard that for too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from uuid import UUID

import httpx

from ai_task_orchestra import lease
from ai_task_orchestra.lease import Lease
from ai_task_orchestra.worker.execution import Execution
from ai_task_orchestra.worker.patient_client import is_unreachable
from ai_task_orchestra.worker.prefect_gateway import PrefectGateway

_log = logging.getLogger(__name__)

# The work pool is looked at again (it may have been deleted and made anew) after this many heartbeats.
_SYNC_EVERY: Final = 12
# So many heartbeats at least while a lease lasts, however rarely the settings want them.
_BEATS_PER_LEASE: Final = 4
_STEP_SECONDS: Final = 0.05


class LeaseKeeper:
    """Stops every run once the lease is not held any more, and tells their children of each renewal until then.

    The lease is renewed by a heartbeat that Prefect took, and by the knowledge that Prefect can be reached and does not
    answer: it is down then, and nobody can take the runs away, since the API judges by the same Prefect. Where it can't
    be reached it may be we who are cut off, and nothing renews the lease.
    """

    def __init__(self, held: Lease, executions: Mapping[UUID, Execution]) -> None:
        self._lease, self._executions = held, executions

    def renew(self, at: float) -> None:
        """The lease is ours from `at` on. Runs that were executed while it was not are stopped all the same."""
        self.check()
        self._lease.renew(at)
        for execution in self._executions.values():
            execution.tell_lease(at)

    def check(self) -> None:
        """Stop all runs unless the lease is held."""
        if self._lease.held:
            return
        for execution in list(self._executions.values()):
            execution.end("lease lost")

    async def run(self) -> None:
        """Check at the moment at which the lease would end, until cancelled."""
        while True:
            await asyncio.sleep(max(self._lease.left, _STEP_SECONDS))
            self.check()


class Heartbeat:
    """Beats regularly, whatever else the worker does; one that gets no answer does not keep the next one back."""

    def __init__(
        self,
        gateway: PrefectGateway,
        keeper: LeaseKeeper,
        *,
        seconds: float,
        lease_seconds: float,
        sync: Callable[[], Awaitable[None]],
        reach: Callable[[float], Awaitable[bool]],
    ) -> None:
        """`sync`: synchronises the worker with its work pool, which includes a heartbeat.

        `reach`: whether Prefect's machine answers within so many seconds.
        """
        self._gateway, self._keeper, self._sync, self._reach = gateway, keeper, sync, reach
        self._seconds = min(seconds, lease_seconds / _BEATS_PER_LEASE)
        self._patience_seconds = lease_seconds / 2
        self._beats = 0

    async def run(self) -> None:
        """Beat until cancelled."""
        async with asyncio.TaskGroup() as beats:
            while True:
                await asyncio.sleep(self._seconds)
                beats.create_task(self._beat())

    async def _beat(self) -> None:
        asked = lease.now()
        self._beats += 1
        try:
            async with asyncio.timeout(self._patience_seconds):
                if self._beats % _SYNC_EVERY:
                    await self._gateway.heartbeat(self._seconds)
                else:
                    await self._sync()
        except (httpx.HTTPError, TimeoutError) as exc:
            self._beats = -1  # after an outage: synchronise first
            _log.debug("worker.heartbeat_failed", extra={"error": type(exc).__name__})
            no_answer = isinstance(exc, TimeoutError) or is_unreachable(exc)
            if not (no_answer and await self._reach(self._patience_seconds)):
                return
        self._keeper.renew(asked)
