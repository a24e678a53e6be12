"""Flow runs that were born in Prefect appear as tasks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from ai_task_orchestra.errors import NotFoundError
from tests.support.core_bench import CoreBench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


async def adopted(bench: CoreBench, run_id: str) -> None:
    async def found() -> bool:
        try:
            return (await bench.get(run_id)).flow_run_id == run_id
        except NotFoundError:
            return False

    await wait_until(found, description="the run is a task")


@pytest.mark.parametrize("events", [True, False])
async def test_a_run_made_in_prefect_becomes_a_task_under_its_own_id(
    bench: CoreBench, prefect: PrefectDouble, events: bool
) -> None:
    prefect.hears_events = events
    run_id = await prefect.quick_run(parameters={"x": {"a": 1}}, work_queue_name="priority-7")
    await adopted(bench, run_id)

    view = await bench.get(run_id)
    assert (view.status, view.priority, view.template) == ("queued", 7, prefect.template)
    assert view.parameters == {"x": {"a": 1}}
    await prefect.start(run_id)
    await prefect.complete(run_id, {"output": "hello"})
    assert (await bench.status(run_id, "completed")).result == {"output": "hello"}


async def test_an_adopted_run_is_moved_cancelled_and_waited_for_like_any_other(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    run_id = await prefect.quick_run()
    await adopted(bench, run_id)

    view = await bench.prioritise(run_id, 10)
    assert view.flow_run_id not in (None, run_id)
    run = await prefect.run(view.flow_run_id or "")
    assert run is not None and run["idempotency_key"] == f"{run_id}:2"
    dependent = await bench.submit(depends_on=[run_id])
    await bench.cancel(run_id)
    await bench.status(run_id, "cancelled")
    await bench.status(dependent, "cancelled")


async def test_a_run_in_a_queue_that_is_not_ours_counts_as_least_urgent(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    run_id = await prefect.quick_run(work_queue_name="default")
    await adopted(bench, run_id)
    assert (await bench.get(run_id)).priority == 1


async def test_runs_of_other_pools_and_of_schedules_for_later_are_nobodys_task(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    elsewhere, later, soon = [UUID(await prefect.quick_run()) for _ in range(3)]
    prefect.known[elsewhere] = replace(prefect.known[elsewhere], work_pool="elsewhere")
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    prefect.known[later] = replace(prefect.known[later], auto_scheduled=True, next_scheduled_start_time=in_an_hour)
    await adopted(bench, str(soon))
    for run_id in (elsewhere, later):
        with pytest.raises(NotFoundError):
            await bench.get(str(run_id))


async def test_a_run_that_was_over_before_we_saw_it_appears_too(bench: CoreBench, prefect: PrefectDouble) -> None:
    prefect.hears_events = False
    run_id = await prefect.quick_run()
    await prefect.start(run_id)
    await prefect.complete(run_id)
    view = await bench_status(bench, run_id)
    assert view == "completed"


async def bench_status(bench: CoreBench, run_id: str) -> str:
    await adopted(bench, run_id)
    return (await bench.status(run_id, "completed")).status


async def test_an_operators_own_rerun_of_an_adopted_run_is_left_alone(bench: CoreBench, prefect: PrefectDouble) -> None:
    run_id = await prefect.quick_run()
    await adopted(bench, run_id)
    await prefect.start(run_id)
    await prefect.set(run_id, "FAILED")
    await bench.status(run_id, "failed")
    await prefect.set(run_id, "SCHEDULED")
    await prefect.start(run_id)
    await prefect.complete(run_id)

    async def audited() -> bool:
        return bool(await bench.sql("SELECT 1 FROM audit WHERE kind = 'late_state'"))

    await wait_until(audited, description="its end is written down")
    assert (await bench.get(run_id)).status == "failed"
