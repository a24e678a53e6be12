"""Which run next: asks Prefect for the most urgent ones, claims them, and never has more than the limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Final
from uuid import UUID

import httpx

from ai_task_orchestra.worker.child_pool import ChildPool
from ai_task_orchestra.worker.execution import Execution
from ai_task_orchestra.worker.patient_client import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, is_unreachable
from ai_task_orchestra.worker.prefect_gateway import Candidate, PrefectGateway
from ai_task_orchestra.worker.waiting_list import AHEAD, WaitingList

_log = logging.getLogger(__name__)

# Prefect announces a run before it is committed: one that is not found yet is looked for once more after this.
_COMMIT_SECONDS: Final = 0.03
# Full answers of which nothing could be claimed, after which the next poll is waited for.
_MOST_FRUITLESS: Final = 3
_MOST_ANNOUNCED: Final = 1000


class ClaimLoop:
    """Fills the free slots, in Prefect's order, whenever there may be something to do.

    That is: a run was announced, a slot or a child became free while runs were waiting, or `poll_seconds` have passed.
    """

    def __init__(
        self,
        gateway: PrefectGateway,
        pool: ChildPool,
        make: Callable[[Candidate], Execution],
        *,
        limit: int,
        poll_seconds: float,
        on_poll: Callable[[], None] = lambda: None,
        may_claim: Callable[[], bool] = lambda: True,
    ) -> None:
        """`make` makes the execution of a claimed run; `on_poll` is called after each answer of Prefect.

        While `may_claim` says no, nothing is claimed.
        """
        self._gateway = gateway
        self._pool = pool
        self._make = make
        self._limit = limit
        self._poll_seconds = poll_seconds
        self._claiming: set[UUID] = set()
        self._slots: set[UUID] = set()
        self._executions: dict[UUID, Execution] = {}
        self._tasks: dict[asyncio.Task[None], Execution] = {}
        self._announced: set[UUID] = set()
        self._ahead = WaitingList()
        self._more_waiting = False
        self._wake = asyncio.Event()
        self._stopping = False
        self._on_poll = on_poll
        self._may_claim = may_claim

    @property
    def executions(self) -> dict[UUID, Execution]:
        """What this worker executes at the moment, until it is settled."""
        return self._executions

    @property
    def idle(self) -> bool:
        return not self._tasks and not self._claiming

    def announce(self, run_id: UUID, priority: int) -> None:
        """A run of this priority may be claimable."""
        if len(self._announced) < _MOST_ANNOUNCED:
            self._announced.add(run_id)
        self._ahead.overtaken_by(priority)
        self._wake.set()

    def withdraw(self, run_id: UUID) -> None:
        """A run that may be waiting was cancelled."""
        self._ahead.withdraw(run_id)

    def nudge(self) -> None:
        """A slot or a child may have become free."""
        if self._more_waiting or self._announced or self._ahead:
            self._wake.set()

    def look_again(self) -> None:
        """Anything may have happened: announcements may have been missed."""
        self._more_waiting = True
        self._wake.set()

    async def run(self, *, once: bool = False) -> None:
        """Claim until `stop`; with `once`, only until all slots are taken or nothing is due."""
        pause = FIRST_PAUSE_SECONDS
        if once:
            await self._pool.wait_ready()
        while not self._stopping:
            try:
                await self.fill()
            except httpx.HTTPError as exc:
                if not is_unreachable(exc):  # an outage has been logged already
                    _log.error("worker.poll_refused", extra={"error": str(exc).partition("\n")[0]})
                self._more_waiting = True
                await self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                continue
            if once:
                return
            pause = FIRST_PAUSE_SECONDS
            await self._sleep(self._poll_seconds)

    def stop(self) -> None:
        """Claim no more."""
        self._stopping = True
        self._wake.set()

    async def drained(self, timeout_seconds: float | None) -> bool:
        """Wait until nothing is executed any more; False if that takes too long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_seconds)
        return self.idle

    async def fill(self) -> None:
        """Claim as many runs as there are free slots and ready children.

        Raises:
            httpx.HTTPError: Prefect is unreachable.
        """
        fruitless = 0
        looked_again = False
        while not self._stopping and self._may_claim():
            self._pool.check_templates()
            free = min(self._limit - len(self._slots), self._pool.ready)
            if free <= 0:
                return
            if next_ones := self._ahead.take(free):
                await self._claim_all(next_ones)
                continue
            announced, self._announced = self._announced, set()
            found = await self._poll(free)
            mine = await self._claim_all(found[:free])
            if not self._more_waiting:
                missing = announced - {run.id for run in found} - self._executions.keys()
                if looked_again or not missing:
                    return
                looked_again = True
                await asyncio.sleep(_COMMIT_SECONDS)
            fruitless = 0 if mine else fruitless + 1
            if fruitless >= _MOST_FRUITLESS:
                return

    async def _poll(self, free: int) -> list[Candidate]:
        """What waits, most urgent first; more than the free slots need, if there were more the last time."""
        wanted = free + AHEAD if self._more_waiting else free
        found = await self._gateway.candidates(wanted)
        self._on_poll()
        self._more_waiting = len(found) >= wanted
        self._ahead.replace(found[free:])
        return found

    async def _claim_all(self, found: list[Candidate]) -> int:
        """Claim all at once, each in a slot of its own; how many became ours."""
        fresh = [run for run in found if run.id not in self._executions and run.id not in self._claiming]
        if self._stopping:
            return 0
        self._claiming |= {run.id for run in fresh}
        self._slots |= {run.id for run in fresh}
        return sum(await asyncio.gather(*(self._claim(run) for run in fresh)))

    async def _claim(self, run: Candidate) -> bool:
        ours = False
        try:
            ours = await self._gateway.claim(run)
        except httpx.HTTPError as exc:
            if not is_unreachable(exc):
                _log.error("worker.claim_refused", extra={"flow_run_id": str(run.id), "error": type(exc).__name__})
                return False
            _log.warning("worker.claim_unanswered", extra={"flow_run_id": str(run.id)})
            self._start(self._make(run), after=self._gateway.claimed_after_all(run))
            return False
        finally:
            self._claiming.discard(run.id)
            if not ours and run.id not in self._executions:
                self._slots.discard(run.id)
        if ours:
            self._start(self._make(run))
        return ours

    def _start(self, execution: Execution, after: Coroutine[None, None, bool] | None = None) -> None:
        self._executions[execution.id] = execution
        task = asyncio.create_task(self._execute(execution, after))
        self._tasks[task] = execution

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            self._executions.pop(execution.id, None)
            self._release(execution.id)

        task.add_done_callback(ended)

    async def _execute(self, execution: Execution, after: Coroutine[None, None, bool] | None) -> None:
        if after is None or await after:
            await execution.execute(lambda: self._release(execution.id))

    def _release(self, run_id: UUID) -> None:
        self._slots.discard(run_id)
        self.nudge()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()
