"""Changing the priority of a queued task: moved, or refused because it has started; whoever dies in between."""

from __future__ import annotations

import asyncio

import pytest

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import ConflictError, NotFoundError, UnreachableError
from ai_task_orchestra.settings import Settings
from tests.support.core_bench import CoreBench, open_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until

NOBODY = "00000000-0000-0000-0000-000000000000"


async def test_a_queued_task_moves_to_the_queue_of_its_new_priority(bench: CoreBench, prefect: PrefectDouble) -> None:
    first, second = await bench.submit(priority=5), await bench.submit(priority=5)
    old = await bench.run_of(second)
    await bench.run_of(first)

    view = await bench.prioritise(second, 9)

    assert (view.priority, view.status) == (9, "queued")
    new = view.flow_run_id
    assert new is not None and new != old
    run = await prefect.run(new)
    assert run is not None and run["work_queue_name"] == "priority-9"
    assert run["idempotency_key"] == protocol.idempotency_key(second, 2)
    assert await prefect.run(old) is None
    assert (await prefect.due())[0] == new
    await _at_rest(bench, second)


async def test_a_held_task_moves_and_stays_held(bench: CoreBench, prefect: PrefectDouble) -> None:
    first = await bench.submit()
    second = await bench.submit(depends_on=[first])
    await bench.run_of(second, state=protocol.STATE_HELD)

    await bench.prioritise(second, 1)

    run = await prefect.run(await bench.run_of(second, state=protocol.STATE_HELD))
    assert run is not None and run["work_queue_name"] == "priority-1"


async def test_started_finished_and_unknown_tasks_do_not_move(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    assert await prefect.claim(run_id)
    with pytest.raises(ConflictError):
        await bench.prioritise(task_id, 9)
    await prefect.set(run_id, "RUNNING")
    await bench.status(task_id, "running")
    with pytest.raises(ConflictError):
        await bench.prioritise(task_id, 9)
    await prefect.complete(run_id)
    await bench.status(task_id, "completed")
    with pytest.raises(ConflictError):
        await bench.prioritise(task_id, 9)
    with pytest.raises(NotFoundError):
        await bench.prioritise(NOBODY, 9)
    assert (await bench.get(task_id)).priority == 5


async def test_a_run_that_ended_unnoticed_is_not_taken_for_one_that_waits(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    """Prefect lets a completed run become Pending: our claim must not run it again."""
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    prefect.hears_events = False
    await prefect.start(run_id)
    await prefect.complete(run_id)

    with pytest.raises(ConflictError):
        await bench.prioritise(task_id, 9)

    view = await bench.status(task_id, "completed")
    assert view.flow_run_id == run_id
    run = await prefect.run(run_id)
    assert run is not None and run["state_type"] == "COMPLETED"


async def test_each_move_that_races_a_claim_ends_as_one_or_the_other(bench: CoreBench, prefect: PrefectDouble) -> None:
    for _ in range(15):
        task_id = await bench.submit(priority=5)
        run_id = await bench.run_of(task_id)

        async def move(task_id: str = task_id) -> bool:
            try:
                await bench.prioritise(task_id, 8)
            except ConflictError:
                return False
            return True

        async def take(run_id: str = run_id) -> bool:
            await asyncio.sleep(0.002)
            return await prefect.run(run_id) is not None and await prefect.claim(run_id)

        moved, claimed = await asyncio.gather(move(), take())

        assert moved != claimed
        assert (await bench.get(task_id)).priority == (8 if moved else 5)
        assert len(await prefect.all_runs(task_id)) == 1


async def test_two_moves_at_once_end_with_the_task_in_one_of_both_queues(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    for _ in range(10):
        task_id = await bench.submit(priority=5)
        await bench.run_of(task_id)
        await asyncio.gather(bench.prioritise(task_id, 8), bench.prioritise(task_id, 2), return_exceptions=True)
        await _at_rest(bench, task_id)
        view = await bench.get(task_id)
        [run] = await prefect.all_runs(task_id)
        assert view.priority in (8, 2)
        assert run["work_queue_name"] == protocol.queue_name(view.priority)


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("propose", "before"),
        ("propose", "after"),
        ("delete_run", "before"),
        ("delete_run", "after"),
        ("create_run", "before"),
        ("create_run", "after"),
    ],
)
async def test_a_move_that_dies_between_two_steps_is_finished_by_the_next_leader(
    settings: Settings, prefect: PrefectDouble, method: str, when: str
) -> None:
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        task_id = await bench.submit(priority=5)
        await bench.run_of(task_id)
        stop = prefect.stop(method, when)
        mover = asyncio.create_task(bench.prioritise(task_id, 9))
        await asyncio.wait_for(stop.reached.wait(), 10)
        mover.cancel()
        await asyncio.gather(mover, return_exceptions=True)
    prefect.go_on()

    async with open_bench(settings, prefect, gateway=prefect) as bench:
        await _at_rest(bench, task_id)
        view = await bench.get(task_id)
        assert view.priority == 9
        [run] = await prefect.all_runs(task_id)
        assert (run["id"], run["work_queue_name"]) == (view.flow_run_id, "priority-9")
        assert run["state_name"] == protocol.STATE_QUEUED


async def test_while_prefect_is_away_a_task_with_a_run_does_not_move(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    await bench.run_of(task_id)
    prefect.is_down = True
    with pytest.raises(UnreachableError):
        await bench.prioritise(task_id, 9)
    prefect.is_down = False
    await _at_rest(bench, task_id)
    assert (await bench.get(task_id)).priority == 5


async def test_a_cancel_that_meets_a_move_wins(bench: CoreBench, prefect: PrefectDouble) -> None:
    for _ in range(10):
        task_id = await bench.submit(priority=5)
        await bench.run_of(task_id)
        await asyncio.gather(bench.prioritise(task_id, 8), bench.cancel(task_id), return_exceptions=True)
        await bench.status(task_id, "cancelled")
        await _at_rest(bench, task_id)
        assert {run["state_type"] for run in await prefect.all_runs(task_id)} <= {"CANCELLED"}


async def _at_rest(bench: CoreBench, task_id: str) -> None:
    """Wait until nothing is left to do for a task."""

    async def done() -> bool:
        rows = await bench.sql("SELECT phase, move_to FROM task WHERE id = $1::uuid", task_id)
        left = await bench.sql("SELECT 1 FROM disposal")
        return rows[0]["move_to"] is None and rows[0]["phase"] not in ("waiting", "creating") and not left

    await wait_until(done, description="nothing is left to do")
