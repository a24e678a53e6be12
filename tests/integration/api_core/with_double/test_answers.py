"""An answer is kept, and what is begun is carried through, also where Prefect's own answers do not arrive."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import UnreachableError
from ai_task_orchestra.settings import Settings
from api.prefect_types import CRASHED
from tests.support.core_bench import CoreBench, core_settings, open_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


@pytest.mark.parametrize("method", ["propose", "runs"])
async def test_a_priority_change_without_prefects_answer_is_carried_through_or_undone(
    bench: CoreBench, prefect: PrefectDouble, method: str
) -> None:
    """The run may be claimed by then: left so, no worker could ever take it."""
    task_id = await bench.submit(priority=5)
    await bench.run_of(task_id)
    prefect.lose_replies(method, 1)

    with pytest.raises(UnreachableError):
        await bench.prioritise(task_id, 9)

    async def claimable() -> bool:
        view = await bench.get(task_id)
        return view.flow_run_id is not None and view.flow_run_id in await prefect.due()

    await wait_until(claimable, description="a worker can take it")


async def test_a_wish_that_can_not_be_asked_for_leaves_the_earlier_one_as_it_was(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id = await bench.submit(priority=5)
    await bench.run_of(task_id)
    prefect.lose_replies("propose", 1)
    with pytest.raises(UnreachableError):
        await bench.prioritise(task_id, 9)
    prefect.is_down = True
    with pytest.raises(UnreachableError):
        await bench.prioritise(task_id, 2)
    prefect.is_down = False

    async def moved() -> bool:
        return (await bench.get(task_id)).priority == 9 and len(await prefect.due()) == 1

    await wait_until(moved, description="the first change is carried through")


async def test_a_release_that_was_cut_off_and_a_priority_change_do_not_wait_for_each_other(
    settings: Settings, prefect: PrefectDouble
) -> None:
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        first = await bench.submit()
        second = await bench.submit(depends_on=[first])
        await bench.run_of(second, state=protocol.STATE_HELD)
        run_id = await bench.run_of(first)
        await prefect.start(run_id)
        await bench.status(first, "running")
        stop = prefect.stop("propose", "after")
        await prefect.complete(run_id)
        await asyncio.wait_for(stop.reached.wait(), 10)
        prefect.go_on()
        prefect.lose_replies("propose", 1)
        with pytest.raises(UnreachableError):
            await bench.prioritise(second, 9)
    prefect.go_on()

    async with open_bench(settings, prefect, gateway=prefect) as bench:

        async def queued() -> bool:
            view = await bench.get(second)
            return view.priority == 9 and view.flow_run_id in await prefect.due()

        await wait_until(queued, description="it is released, and in the queue of its new priority")


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED", "CRASHED"])
async def test_a_cancellation_that_was_accepted_during_an_outage_stays_one(
    bench: CoreBench, prefect: PrefectDouble, end: str
) -> None:
    task_id = await bench.submit()
    dependent = await bench.submit(depends_on=[task_id])
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await bench.status(task_id, "running")
    prefect.is_down = True

    await bench.cancel(task_id)
    await prefect.report(run_id, result={"output": "done"})
    await prefect.set(run_id, end)
    prefect.is_down = False

    view = await bench.status(task_id, "cancelled")
    assert view.result is None
    await bench.status(dependent, "cancelled")
    await bench.run_of(task_id, state="Cancelled")
    assert len(await prefect.all_runs(task_id)) == 1


async def test_work_that_completes_while_its_worker_is_declared_lost_is_not_done_again(
    settings: Settings, prefect: PrefectDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = core_settings(
        tmp_path, settings.database_url or "", settings.prefect_url, prefect.pool, worker_lease_seconds=0.4
    )
    await prefect.heartbeat("machine")
    propose = prefect.propose

    async def late(run_id: Any, state_type: str, **more: Any) -> Any:
        if state_type == CRASHED:
            await prefect.complete(str(run_id))
            answer = await propose(run_id, state_type, **more)
            looks = prefect.calls.count("states")
            await wait_until(lambda: prefect.calls.count("states") > looks, description="the mirror has looked")
            return answer
        return await propose(run_id, state_type, **more)

    monkeypatch.setattr(prefect, "propose", late)
    async with open_bench(quick, prefect, gateway=prefect) as bench:
        task_id = await bench.submit()
        run_id = await bench.run_of(task_id)
        await prefect.start(run_id, "machine")
        view = await bench.status(task_id, "completed")
        assert (view.flow_run_id, view.result) == (run_id, {"output": "done"})
        await bench.run_of(task_id, state="Completed")
        assert len(await prefect.all_runs(task_id)) == 1
