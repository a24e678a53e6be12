"""Two who want the same task at the same moment: what must come of it, beside Prefect's double or a real one."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import ConflictError
from tests.support.core_bench import CoreBench
from tests.support.waiting import wait_until

#: A race is over within this time, on a machine with other work too.
SECONDS = 60.0
#: The second one waits no longer than this: well before a cancellation is forced, which would end the race itself.
LONGEST_WAIT = 2.0


@dataclass
class Start:
    """How long the second one waits: such that either wins about as often, on any machine."""

    chance: random.Random
    seconds: float = 0.02
    won: list[bool] = field(default_factory=list)

    async def wait(self) -> None:
        await asyncio.sleep(self.chance.uniform(0, self.seconds))

    def first_won(self, won: bool) -> None:
        self.won.append(won)
        self.seconds = min(LONGEST_WAIT, max(0.001, self.seconds * (0.8 if won else 1.25)))


async def move_against_claim(bench: CoreBench, prefect: Any, start: Start) -> None:
    """PATCH against a worker's claim.

    Whoever wins, the task is worked on once and completes.
    """
    task_id = await bench.submit(priority=5)
    old = await bench.run_of(task_id, state=protocol.STATE_QUEUED)

    async def claim() -> bool:
        await start.wait()
        return bool(await prefect.try_claim(old))

    moved, taken = await asyncio.gather(_answer(bench.prioritise(task_id, 8)), claim())
    start.first_won(moved)

    assert moved != taken, f"moved: {moved}, claimed: {taken}"
    assert (await bench.get(task_id)).priority == (8 if moved else 5)
    run_id = await bench.run_of(task_id, other_than=old, state=protocol.STATE_QUEUED) if moved else old
    assert not moved or await prefect.try_claim(run_id)
    assert (await prefect.set(run_id, "RUNNING"))["status"] == "ACCEPT"
    await prefect.complete(run_id)
    view = await bench.status(task_id, "completed", timeout=SECONDS)
    assert len(view.attempts) == 1

    async def alone() -> bool:
        return [run["id"] for run in await prefect.all_runs(task_id)] == [run_id]

    await wait_until(alone, timeout=SECONDS, description="no other run of the task is left")


async def cancel_against_completion(bench: CoreBench, prefect: Any, start: Start) -> None:
    """DELETE against the end of the work."""
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id, state=protocol.STATE_QUEUED)
    await prefect.start(run_id)
    await prefect.report(run_id, result={"output": "done"})

    async def complete() -> bool:
        await start.wait()
        return bool((await prefect.set(run_id, "COMPLETED"))["status"] == "ACCEPT")

    cancelled, completed = await asyncio.gather(_answer(bench.cancel(task_id)), complete())
    start.first_won(cancelled)

    assert cancelled != completed, f"cancelled: {cancelled}, completed: {completed}"
    if cancelled:  # its worker stops the work and says so
        await prefect.set(run_id, "CANCELLED", force=True)
    view = await bench.status(task_id, "cancelled" if cancelled else "completed", timeout=SECONDS)
    assert (view.result is None) == cancelled
    assert [attempt.outcome for attempt in view.attempts] == [view.status]
    assert await _answer(bench.cancel(task_id)) == cancelled
    assert await bench.get(task_id) == view


async def _answer(request: Any) -> bool:
    """False: 409."""
    try:
        await request
    except ConflictError:
        return False
    return True
