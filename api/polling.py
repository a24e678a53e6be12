"""Looking at Prefect regularly: the truth behind the lossy events.

Cheap looks are taken often (what is active, what has just ended), the whole backlog rarely.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from api import live_store
from api.database import Sessions
from api.gateway import PAGE, PrefectGateway
from api.mirror import Mirror
from api.pools import Pools
from api.prefect_types import ACTIVE_STATES, WAITING_STATES, FlowRun, RunFilter

#: Looks overlap by this much: Prefect's times are set before they can be read, and its clock is known about.
OVERLAP: Final = timedelta(seconds=5)
#: At the start, runs that ended or were made while no API was there are looked for this far back.
FIRST_LOOK_BACK_SECONDS: Final = 900.0


class Polling:
    """The regular looks. How long ago the last one was is by our clock, since when to look by Prefect's."""

    def __init__(self, sessions: Sessions, gateway: PrefectGateway, mirror: Mirror, pools: Pools) -> None:
        self._sessions, self._gateway, self._mirror, self._pools = sessions, gateway, mirror, pools
        self._looked_for_ended = self._looked_for_made = time.monotonic() - FIRST_LOOK_BACK_SECONDS

    async def active(self) -> None:
        """What is claimed or running, what has ended since the last look, and what should be running and is not."""
        began = time.monotonic()
        pools = self._pools.names()
        seen: set[UUID] = set()
        for which in (
            RunFilter(work_pools=pools, state_types=ACTIVE_STATES),
            RunFilter(work_pools=pools, ended_after=self._since(self._looked_for_ended)),
        ):
            async for page in self._pages(which):
                seen |= {run.id for run in page}
                await self._mirror.take_in(page)
        self._looked_for_ended = began
        async for runs in self._tasks_runs(running_only=True):
            await self._mirror.reconcile([run_id for run_id in runs if run_id not in seen])

    async def unknown(self) -> None:
        """Runs that were made in Prefect since the last look."""
        began = time.monotonic()
        which = RunFilter(
            work_pools=self._pools.names(),
            state_types=tuple(sorted(WAITING_STATES)),
            expected_after=self._since(self._looked_for_made),
        )
        async for page in self._pages(which):
            await self._mirror.take_in(page)
        self._looked_for_made = began

    async def full(self) -> None:
        """Every unfinished task, and every waiting run."""
        async for runs in self._tasks_runs(running_only=False):
            await self._mirror.reconcile(runs)
        which = RunFilter(work_pools=self._pools.names(), state_types=tuple(sorted(WAITING_STATES)))
        async for page in self._pages(which):
            await self._mirror.take_in(page)

    def _since(self, looked: float) -> datetime:
        """When we looked last, by Prefect's clock, and a little before."""
        return self._gateway.now() - timedelta(seconds=time.monotonic() - looked) - OVERLAP

    async def _pages(self, which: RunFilter) -> AsyncIterator[list[FlowRun]]:
        offset = 0
        while page := await self._gateway.find_runs(which, offset=offset):
            yield page
            if len(page) < PAGE:
                return
            offset += len(page)

    async def _tasks_runs(self, *, running_only: bool) -> AsyncIterator[list[UUID]]:
        after = 0
        while True:
            async with self._sessions.single() as session:
                page = await live_store.live_runs(session, after=after, limit=PAGE, running_only=running_only)
            if not page:
                return
            after = page[-1][0]
            yield [run_id for _, run_id in page]
