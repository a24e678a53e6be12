"""The lease of a worker: its heartbeat to Prefect. A worker that stops beating has lost its runs.

Nobody's clock is compared with another's: a worker is lost when its heartbeat, as Prefect shows it, has not changed
for the length of the lease *while we were looking all the time*. After an outage of Prefect, or a pause of our own,
the watch begins anew, so that workers who could not beat either are not taken for dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from uuid import UUID

from api import live_store
from api.database import Sessions
from api.gateway import PrefectGateway
from api.mirror import Mirror
from api.pools import Pools
from api.prefect_types import CANCELLED, CANCELLING, CRASHED, PENDING, RUNNING, Worker

logger = logging.getLogger(__name__)


class LeaseBook:
    """When each worker's heartbeat was first seen as it is now."""

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_seconds, self._clock = lease_seconds, clock
        self._seen: dict[str, tuple[datetime | None, float]] = {}
        self._looked_at: float | None = None

    def look(self, workers: Iterable[Worker]) -> set[str]:
        """Take in what Prefect says now; returns the workers whose lease has run out."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at > self._lease_seconds / 2:
            self.interrupted()
        self._looked_at = now
        for worker in workers:
            if self._seen.get(worker.name, (None, now))[0] != worker.last_heartbeat or worker.name not in self._seen:
                self._seen[worker.name] = (worker.last_heartbeat, now)
        return {name for name, (_, since) in self._seen.items() if now - since > self._lease_seconds}

    def interrupted(self) -> None:
        """We could not look: every lease begins anew."""
        self._seen.clear()
        self._looked_at = None


class Leases:
    """Takes their runs from workers that are lost."""

    def __init__(
        self,
        sessions: Sessions,
        gateway: PrefectGateway,
        mirror: Mirror,
        pools: Pools,
        lease_seconds: float,
    ) -> None:
        self._sessions, self._gateway, self._mirror, self._pools = sessions, gateway, mirror, pools
        self._lease_seconds = lease_seconds
        self._book = LeaseBook(lease_seconds)

    async def check(self) -> None:
        """Look once.

        Raises:
            UnreachableError: Prefect does not answer; the leases begin anew.
        """
        try:
            workers = [worker for pool in self._pools.names() for worker in await self._gateway.workers(pool)]
        except BaseException:
            self._book.interrupted()
            raise
        lost = self._book.look(workers)
        if not lost:
            return
        async with self._sessions.single() as session:
            tasks = await live_store.tasks_of_workers(session, lost)
        for task_id, run_id, worker in tasks:
            await self._take_away(task_id, run_id, worker)

    async def _take_away(self, task_id: UUID, run_id: UUID, worker: str) -> None:
        """End the run in the worker's place; the mirror decides whether another attempt follows.

        A claim that was given back, or that another worker has by now, is left alone: the row was behind.
        """
        run = (await self._gateway.runs([run_id])).get(run_id)
        if run is not None and run.worker in (None, worker):
            if run.state.type in (PENDING, RUNNING):
                message = f"The worker {worker} was lost: no heartbeat for {self._lease_seconds:g} s."
                await self._gateway.propose(run_id, CRASHED, name="Crashed", message=message, force=True)
            elif run.state.type == CANCELLING:
                message = f"Cancelled through the API; the worker {worker} was lost."
                await self._gateway.propose(run_id, CANCELLED, message=message, force=True)
        logger.warning("worker_lost", extra={"task_id": str(task_id), "flow_run_id": str(run_id), "worker": worker})
        await self._mirror.reconcile([run_id])
