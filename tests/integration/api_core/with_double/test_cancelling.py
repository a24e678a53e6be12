"""Cancelling a task in each of its states."""

from __future__ import annotations

import asyncio

import pytest

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import ConflictError, NotFoundError
from api import cancellation
from tests.support.core_bench import CoreBench
from tests.support.prefect_double import PrefectDouble

NOBODY = "00000000-0000-0000-0000-000000000000"


async def test_a_queued_task_is_cancelled_before_the_answer(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id, state=protocol.STATE_QUEUED)

    await bench.cancel(task_id)

    view = await bench.get(task_id)
    assert view.status == "cancelled"
    assert view.completed_at is not None
    assert not await prefect.claim(run_id)
    await bench.cancel(task_id)  # again is no error


async def test_a_held_task_is_cancelled_before_the_answer(bench: CoreBench, prefect: PrefectDouble) -> None:
    first = await bench.submit()
    task_id = await bench.submit(depends_on=[first])
    await bench.run_of(task_id, state=protocol.STATE_HELD)

    await bench.cancel(task_id)

    assert (await bench.get(task_id)).status == "cancelled"
    await bench.run_of(task_id, state="Cancelled")


async def test_a_task_cancelled_right_after_its_submission_leaves_no_live_run(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    ids = []
    for _ in range(10):
        ids.append(await bench.submit())
        await bench.cancel(ids[-1])
    for task_id in ids:
        await bench.status(task_id, "cancelled")
    states = {run["state_type"] for run in await prefect.all_runs()}
    assert states <= {"CANCELLED"}
    assert await prefect.due() == []


async def test_a_running_task_is_cancelled_when_its_worker_says_so(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await bench.status(task_id, "running")

    await bench.cancel(task_id)

    assert (await bench.get(task_id)).status == "running"
    await bench.run_of(task_id, state="Cancelling")
    await prefect.set(run_id, "CANCELLED", force=True)
    [attempt] = (await bench.status(task_id, "cancelled")).attempts
    assert attempt.outcome == "cancelled"


async def test_a_claimed_task_cannot_start_once_it_is_being_cancelled(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    assert await prefect.claim(run_id)

    await bench.cancel(task_id)

    answer = await prefect.set(run_id, "RUNNING")
    assert answer["status"] == "REJECT"
    await prefect.set(run_id, "CANCELLED", force=True)
    await bench.status(task_id, "cancelled")


async def test_a_worker_that_does_not_confirm_is_overruled(
    bench: CoreBench, prefect: PrefectDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "FORCE_SECONDS", 1.0)
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)

    await bench.cancel(task_id)

    await bench.status(task_id, "cancelled")
    await bench.run_of(task_id, state="Cancelled")


async def test_finished_tasks_and_strangers_cannot_be_cancelled(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await prefect.complete(run_id)
    with pytest.raises(ConflictError):  # whether the mirror has heard of the end or not
        await bench.cancel(task_id)
    await bench.status(task_id, "completed")
    with pytest.raises(ConflictError):
        await bench.cancel(task_id)
    with pytest.raises(NotFoundError):
        await bench.cancel(NOBODY)


async def test_cancelling_races_completion_and_each_task_ends_once(bench: CoreBench, prefect: PrefectDouble) -> None:
    ids = [await bench.submit() for _ in range(8)]
    runs = [await bench.run_of(task_id) for task_id in ids]
    for run_id in runs:
        await prefect.start(run_id)

    async def end(run_id: str) -> None:
        await prefect.report(run_id, result={"output": "x"})
        await prefect.set(run_id, "COMPLETED")

    async def cancel(task_id: str) -> bool:
        try:
            await bench.cancel(task_id)
        except ConflictError:
            return False
        return True

    taken = await asyncio.gather(*(cancel(task_id) for task_id in ids), *(end(run_id) for run_id in runs))
    for run_id in runs:
        run = await prefect.run(run_id)
        if run is not None and run["state_type"] == "CANCELLING":
            await prefect.set(run_id, "CANCELLED", force=True)
    for task_id, was_taken in zip(ids, taken, strict=False):
        await bench.status(task_id, "cancelled" if was_taken else "completed")
