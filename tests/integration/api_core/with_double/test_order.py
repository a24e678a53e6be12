"""Which task starts next, while clients change their minds all the time."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import ConflictError
from tests.support.core_bench import CoreBench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until

TASKS = 60


class Line(list[str]):
    """The model: who waits, in which order; it is told of each start and says who should have been the next.

    A task whose priority is just being changed may start with the old one, with the new one, or be on its way.
    """

    def __init__(self, prefect: PrefectDouble) -> None:
        super().__init__()
        self._prefect = prefect
        self._entries = 0
        self.waiting: dict[str, tuple[int, int]] = {}
        self.moving: dict[str, int] = {}

    def enter(self, task_id: str, priority: int) -> None:
        """At the end of its priority's queue."""
        self._entries += 1
        self.waiting[task_id] = (priority, -self._entries)

    def append(self, run_id: str) -> None:
        """The run starts."""
        run = self._prefect.known[UUID(run_id)]
        task_id, _ = protocol.task_of_run(run.id, run.idempotency_key)
        settled = {waiting: place for waiting, place in self.waiting.items() if waiting not in self.moving}
        if task_id in self.moving:
            first = max((priority for priority, _ in settled.values()), default=0)
            assert max(self.moving[task_id], self.waiting[task_id][0]) >= first
        else:
            assert task_id == max(settled, key=lambda waiting: settled[waiting])
        del self.waiting[task_id]
        super().append(run_id)


async def work(prefect: PrefectDouble, line: Line, turns: asyncio.Queue[None]) -> None:
    """A worker with one slot; each task takes until the next turn."""

    async def claim() -> str | None:
        for run_id in await prefect.due(1):
            if await prefect.claim(run_id):
                line.append(run_id)
                return run_id
        return None

    for _ in range(TASKS):
        run_id = await wait_until(claim, timeout=60, description="something is due")
        await prefect.set(run_id, "RUNNING")
        await turns.get()
        await prefect.complete(run_id)


async def change(bench: CoreBench, line: Line, task_id: str, priority: int) -> bool:
    """Give a waiting task another priority; False: it has just been started."""
    before, _ = line.waiting[task_id]
    line.moving[task_id] = priority
    try:
        await bench.prioritise(task_id, priority)
    except ConflictError:
        assert task_id not in line.waiting, f"{task_id} waits and could not be moved"
        return False
    finally:
        del line.moving[task_id]
    if task_id in line.waiting and before != priority:
        line.enter(task_id, priority)
    return True


@pytest.mark.timeout(600)
async def test_60_tasks_start_in_the_order_of_the_model_while_their_priorities_change(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311
    line = Line(prefect)
    for _ in range(TASKS):
        priority = chance.randint(1, 10)
        task_id = await bench.submit(priority=priority)
        await bench.run_of(task_id, state=protocol.STATE_QUEUED)
        line.enter(task_id, priority)
    ids, turns, moved = list(line.waiting), asyncio.Queue[None](), 0

    worker = asyncio.create_task(work(prefect, line, turns))
    while line.waiting and not worker.done():
        moved += await change(bench, line, chance.choice(list(line.waiting)), chance.randint(1, 10))
        turns.put_nowait(None)
    turns.put_nowait(None)
    await worker

    for task_id in ids:
        await bench.status(task_id, "completed", timeout=60)
    assert len(line) == TASKS
    assert moved > TASKS / 2
