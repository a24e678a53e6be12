"""Retries that are attempts of their own, and runs that a stopping worker hands back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.protocol import STATE_HANDED_BACK, queue_name
from ai_task_orchestra.settings import Settings
from tests.support.core_bench import CoreBench, open_bench, write_template
from tests.support.prefect_double import PrefectDouble

#: What the report of an attempt says whose step `x` has two retries, a minute and more apart.
RETRY = {"retryable": True, "step_retry": {"retries": 2, "delay_seconds": 60.0}}


@pytest.fixture
async def bench(settings: Settings, prefect: PrefectDouble, tmp_path: Path) -> AsyncIterator[CoreBench]:
    prefect.deploy_now("retried")
    write_template(tmp_path, "retried", retries=1, retry_delay_seconds=600)
    async with open_bench(settings, prefect, gateway=prefect) as opened:
        yield opened


async def attempt(bench: CoreBench, prefect: PrefectDouble, task_id: str, before: str | None = None) -> str:
    """The task's next flow run, begun by a worker."""
    run_id = await bench.run_of(task_id, other_than=before)
    await prefect.start(run_id)
    await bench.status(task_id, "running")
    return run_id


async def waits(bench: CoreBench, task_id: str) -> float:
    """How many seconds the task, which has no flow run meanwhile, waits for its retry."""
    view = await bench.status(task_id, "queued")
    assert view.flow_run_id is None
    [row] = await bench.sql("SELECT not_before FROM task WHERE id = $1::uuid", task_id)
    return float((row["not_before"] - datetime.now(UTC)).total_seconds())


async def time_passes(bench: CoreBench, task_id: str) -> None:
    await bench.sql("UPDATE task SET not_before = now() WHERE id = $1::uuid", task_id)


async def test_a_steps_long_retry_is_an_attempt_of_its_own_and_they_end(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id = await bench.submit()
    run_id = await attempt(bench, prefect, task_id)
    for least in (60, 120):
        await prefect.fail(run_id, **RETRY)
        assert least - 30 < await waits(bench, task_id) < least * 1.1
        assert len(await prefect.all_runs(task_id)) == len((await bench.get(task_id)).attempts)
        await time_passes(bench, task_id)
        run_id = await attempt(bench, prefect, task_id, run_id)
    await prefect.fail(run_id, **RETRY)

    view = await bench.status(task_id, "failed")
    assert view.error == {"type": "step_failed", "message": "step 'x': broke", "step": "x"}
    assert [a.outcome for a in view.attempts] == ["failed", "failed", "failed"]


async def test_after_its_steps_retries_the_task_has_its_own(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit(template="retried")
    run_id = await attempt(bench, prefect, task_id)
    once = RETRY | {"step_retry": {"retries": 1, "delay_seconds": 60.0}}
    for least in (60, 600, 60):
        await prefect.fail(run_id, **once)
        assert least - 30 < await waits(bench, task_id) < least * 1.1
        await time_passes(bench, task_id)
        run_id = await attempt(bench, prefect, task_id, run_id)
    await prefect.complete(run_id)
    assert len((await bench.status(task_id, "completed")).attempts) == 4


async def test_a_task_that_waits_for_its_retry_is_cancelled_at_once(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    await prefect.fail(await attempt(bench, prefect, task_id), **RETRY)
    await waits(bench, task_id)

    await bench.cancel(task_id)

    assert (await bench.get(task_id)).status == "cancelled"
    assert len(await prefect.all_runs(task_id)) == 1


async def test_a_task_that_waits_for_its_retry_takes_another_priority(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit(priority=2)
    run_id = await attempt(bench, prefect, task_id)
    await prefect.fail(run_id, **RETRY)
    before = await waits(bench, task_id)

    assert (await bench.prioritise(task_id, 9)).priority == 9

    assert before - 30 < await waits(bench, task_id) <= before  # sooner it does not come
    await time_passes(bench, task_id)
    run = await prefect.run(await bench.run_of(task_id, other_than=run_id))
    assert run is not None and run["work_queue_name"] == queue_name(9)


async def test_a_run_that_a_stopping_worker_hands_back_is_run_again_and_is_no_loss(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id = await bench.submit()
    run_id = await attempt(bench, prefect, task_id)
    for _ in range(4):
        await prefect.set(run_id, "CRASHED", name=STATE_HANDED_BACK, message="The worker w1 stopped.")
        run_id = await attempt(bench, prefect, task_id, run_id)
    await prefect.complete(run_id)

    view = await bench.status(task_id, "completed")
    assert [a.outcome for a in view.attempts] == ["handed_back"] * 4 + ["completed"]
    assert await losses(bench, task_id) == 0


async def test_a_handed_back_run_that_ends_all_the_same_is_written_down_and_not_published(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id = await bench.submit()
    first = await attempt(bench, prefect, task_id)
    await prefect.set(first, "CRASHED", name=STATE_HANDED_BACK)
    second = await attempt(bench, prefect, task_id, first)

    await prefect.complete(first, {"output": "from the dead"})
    await prefect.complete(second, {"output": "from the living"})

    assert (await bench.status(task_id, "completed")).result == {"output": "from the living"}


async def losses(bench: CoreBench, task_id: str) -> Any:
    [row] = await bench.sql("SELECT losses FROM task WHERE id = $1::uuid", task_id)
    return row["losses"]
