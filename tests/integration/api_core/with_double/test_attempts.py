"""Lost and failed attempts, runs that vanish, and news that come too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from ai_task_orchestra.settings import Settings
from api.core import Parts
from api.pools import Pools
from api.wake import Wake
from tests.support.core_bench import CoreBench, open_bench, write_template
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


@pytest.fixture
async def bench(settings: Settings, prefect: PrefectDouble, tmp_path: Path) -> AsyncIterator[CoreBench]:
    """With templates that are run again, or not."""
    prefect.deploy_now("retried")
    write_template(tmp_path, "retried", retries=2, retry_delay_seconds=0.1)
    prefect.deploy_now("once")
    write_template(tmp_path, "once", on_worker_loss="fail")
    async with open_bench(settings, prefect, gateway=prefect) as opened:
        yield opened


async def test_a_task_that_loses_three_workers_is_poison_and_others_go_on(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id, other = await bench.submit(), await bench.submit()
    run_id: str | None = None
    for number in (1, 2, 3):
        run_id = await bench.run_of(task_id, other_than=run_id)
        await prefect.start(run_id, f"machine-{number}")
        await bench.status(task_id, "running")
        await prefect.set(run_id, "CRASHED", message="Process killed by signal 9.")

    view = await bench.status(task_id, "failed")
    assert view.error == {
        "type": "poison",
        "message": "The task was interrupted 3 times and is not run again. The last time: Process killed by signal 9.",
    }
    assert [(a.number, a.worker, a.outcome) for a in view.attempts] == [
        (1, "machine-1", "crashed"),
        (2, "machine-2", "crashed"),
        (3, "machine-3", "crashed"),
    ]
    assert view.started_at == view.attempts[0].started
    assert len(await prefect.all_runs(task_id)) == 3
    await prefect.start(await bench.run_of(other))
    await prefect.complete(await bench.run_of(other))
    await bench.status(other, "completed")


async def test_a_template_may_forbid_another_attempt(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit(template="once")
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await prefect.set(run_id, "CRASHED", message="lost")
    assert (await bench.status(task_id, "failed")).error == {"type": "crashed", "message": "lost"}


async def test_a_failed_attempt_is_retried_as_often_as_the_template_says(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id = await bench.submit(template="retried")
    run_id: str | None = None
    for _ in range(2):
        run_id = await bench.run_of(task_id, other_than=run_id)
        await prefect.start(run_id)
        await prefect.fail(run_id)
        await bench.status(task_id, "queued")
    run_id = await bench.run_of(task_id, other_than=run_id)
    await prefect.start(run_id)
    await prefect.complete(run_id, {"output": "third time lucky"})

    view = await bench.status(task_id, "completed")
    assert view.error is None
    assert [attempt.outcome for attempt in view.attempts] == ["failed", "failed", "completed"]


async def test_what_no_retry_can_mend_is_not_retried(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit(template="retried")
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await prefect.fail(run_id, retryable=False)
    assert len((await bench.status(task_id, "failed")).attempts) == 1


async def test_a_failure_without_a_report_has_prefects_message(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await prefect.set(run_id, "FAILED", message="Flow could not be retrieved.")
    view = await bench.status(task_id, "failed")
    assert view.error == {"type": "failed", "message": "Flow could not be retrieved."}


async def test_a_task_to_be_cancelled_is_not_run_again(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await bench.cancel(task_id)
    await prefect.set(run_id, "CRASHED", force=True)
    await bench.status(task_id, "cancelled")
    assert len(await prefect.all_runs(task_id)) == 1


async def test_the_first_final_state_wins_and_later_ones_are_written_down(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await prefect.complete(run_id)
    before = await bench.status(task_id, "completed")

    await prefect.set(run_id, "CANCELLED", force=True)

    async def audited() -> list[Any]:
        return await bench.sql("SELECT kind, detail FROM audit WHERE task_id = $1::uuid AND actor IS NULL", task_id)

    [row] = await wait_until(audited, description="the contradiction is written down")
    assert row["kind"] == "late_state"
    assert await bench.get(task_id) == before


async def test_what_a_lost_attempt_still_sends_is_not_published(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    first = await bench.run_of(task_id)
    await prefect.start(first)
    await prefect.set(first, "CRASHED", force=True)
    second = await bench.run_of(task_id, other_than=first)
    await prefect.start(second)
    await bench.status(task_id, "running")

    await prefect.complete(first, {"output": "from the dead"})
    await prefect.complete(second, {"output": "from the living"})

    view = await bench.status(task_id, "completed")
    assert view.result == {"output": "from the living"}
    assert [attempt.outcome for attempt in view.attempts] == ["crashed", "completed"]


async def test_news_that_were_read_earlier_and_arrive_later_change_nothing(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    old = prefect.known[UUID(run_id)]
    await prefect.start(run_id)
    await bench.status(task_id, "running")
    prefect.is_down = True  # nobody looks again and mends it
    pools = Pools(prefect.pool, bench.library)
    mirror = Parts.wire(bench.settings, bench.library, bench.core.sessions, prefect, Wake(), pools).mirror

    await mirror.apply(old)

    assert (await bench.get(task_id)).status == "running"


async def test_a_completed_task_that_somebody_starts_again_is_stopped(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    await prefect.start(run_id)
    await prefect.complete(run_id)
    await bench.status(task_id, "completed")

    await prefect.set(run_id, "SCHEDULED")

    async def stopped() -> bool:
        run = await prefect.run(run_id)
        return run is not None and run["state_type"] in ("CANCELLING", "CANCELLED")

    await wait_until(stopped, description="the run is stopped")
    assert (await bench.get(task_id)).status == "completed"


async def test_a_run_deleted_by_hand_cancels_its_task(bench: CoreBench, prefect: PrefectDouble) -> None:
    task_id = await bench.submit()
    dependent = await bench.submit(depends_on=[task_id])
    await prefect.delete(await bench.run_of(task_id))
    error = (await bench.status(task_id, "cancelled")).error
    assert error is not None and error["type"] == "deleted_in_prefect"
    await bench.status(dependent, "cancelled")


async def test_an_event_that_comes_before_its_run_can_be_read_does_not_make_it_a_deleted_one(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    prefect.commit_seconds, prefect.answer_seconds = 0.05, 0.15
    ids = [await bench.submit() for _ in range(3)]
    for task_id in ids:
        await bench.run_of(task_id)
    reads = prefect.calls.count("runs")
    await wait_until(lambda: prefect.calls.count("runs") >= reads + 3, description="the events have been looked at")
    assert {(await bench.get(task_id)).status for task_id in ids} == {"queued"}


async def test_a_prefect_that_has_forgotten_everything_gets_the_tasks_again(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    ids = [await bench.submit() for _ in range(3)]
    runs = [await bench.run_of(task_id) for task_id in ids]
    prefect.known.clear()
    prefect.deployments.clear()

    async def given_up() -> bool:
        return not {(await bench.get(task_id)).flow_run_id for task_id in ids} & set(runs)

    await wait_until(given_up, description="the old runs are given up")
    prefect.deploy_now(prefect.template)
    for task_id, old in zip(ids, runs, strict=True):
        await bench.run_of(task_id, other_than=old)
        assert (await bench.get(task_id)).status == "queued"


async def test_without_any_event_everything_still_arrives(bench: CoreBench, prefect: PrefectDouble) -> None:
    prefect.hears_events = False
    ids = [await bench.submit() for _ in range(3)]
    for task_id in ids:
        run_id = await bench.run_of(task_id)
        await prefect.start(run_id)
        await bench.status(task_id, "running")
        await prefect.complete(run_id)
    for task_id in ids:
        await bench.status(task_id, "completed")
    first = await bench.submit()
    second = await bench.submit(depends_on=[first])
    run_id = await bench.run_of(first)
    await prefect.start(run_id)
    await prefect.complete(run_id)
    await bench.run_of(second, state="Queued")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_dispatcher_that_dies_while_creating_makes_one_run_all_the_same(
    settings: Settings, prefect: PrefectDouble, when: str
) -> None:
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        stop = prefect.stop("create_run", when)
        task_id = await bench.submit()
        doomed = await bench.submit()
        await asyncio.wait_for(stop.reached.wait(), 10)

        async def both() -> bool:
            rows = await bench.sql("SELECT phase FROM task")
            return all(row["phase"] != "waiting" for row in rows)

        await wait_until(both, description="both are being created")
        await bench.cancel(doomed)
        if when == "before":  # a run may exist: nothing is shown as cancelled before that is sure
            assert (await bench.get(doomed)).status == "queued"
    prefect.go_on()

    async with open_bench(settings, prefect, gateway=prefect) as bench:
        await bench.run_of(task_id)
        await bench.status(doomed, "cancelled")
        assert len(await prefect.all_runs(task_id)) == 1
        [run] = await prefect.all_runs(doomed)
        assert run["state_type"] == "CANCELLED"
        if when == "before":  # no worker could have taken it for a moment
            assert [state.type for state in prefect.history[UUID(run["id"])]] == ["CANCELLED"]


async def test_lost_replies_make_no_twins(bench: CoreBench, prefect: PrefectDouble) -> None:
    prefect.lose_replies("create_run", 3)
    ids = [await bench.submit() for _ in range(3)]
    for task_id in ids:
        await bench.run_of(task_id)
    assert len(await prefect.all_runs()) == 3


async def test_a_dependent_cancelled_while_its_held_run_is_created_leaves_no_live_run(
    settings: Settings, prefect: PrefectDouble
) -> None:
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        first = await bench.submit()
        await bench.run_of(first)
        stop = prefect.stop("create_run", "after")
        second = await bench.submit(depends_on=[first])
        await asyncio.wait_for(stop.reached.wait(), 10)
        await bench.cancel(first)
        await bench.status(second, "cancelled")
    prefect.go_on()
    async with open_bench(settings, prefect, gateway=prefect):

        async def none_live() -> bool:
            runs = await prefect.all_runs(second)
            return bool(runs) and all(run["state_type"] == "CANCELLED" for run in runs)

        await wait_until(none_live, description="the held run is cancelled")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_release_that_dies_half_way_is_finished(settings: Settings, prefect: PrefectDouble, when: str) -> None:
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        first = await bench.submit()
        second = await bench.submit(depends_on=[first])
        await bench.run_of(second, state="AwaitingDependencies")
        run_id = await bench.run_of(first)
        await prefect.start(run_id)
        await bench.status(first, "running")
        stop = prefect.stop("propose", when)
        await prefect.complete(run_id)
        await asyncio.wait_for(stop.reached.wait(), 10)
    prefect.go_on()
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        await bench.run_of(second, state="Queued")


async def test_a_held_run_that_somebody_starts_by_hand_is_shown_as_it_is(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    first = await bench.submit()
    second = await bench.submit(depends_on=[first])
    run_id = await bench.run_of(second, state="AwaitingDependencies")
    await prefect.set(run_id, "SCHEDULED")
    await prefect.start(run_id)
    await bench.status(second, "running")
    await prefect.complete(run_id)
    await bench.status(second, "completed")
    await bench.cancel(first)
    assert (await bench.get(second)).status == "completed"


async def test_what_prefect_keeps_refusing_fails_and_says_why(
    bench: CoreBench, prefect: PrefectDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api import dispatcher
    from api.prefect_http import PrefectRefusedError

    monkeypatch.setattr(dispatcher, "LONGEST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher, "FIRST_BACKOFF_SECONDS", 0.01)

    async def refuse(*_: Any) -> Any:
        raise PrefectRefusedError("Prefect refused the request (422): too large", status=422)

    monkeypatch.setattr(prefect, "create_run", refuse)
    task_id = await bench.submit()
    error = (await bench.status(task_id, "failed")).error
    assert error is not None and error["type"] == "dispatch" and "too large" in error["message"]


async def test_a_task_waits_for_its_deployment(settings: Settings, prefect: PrefectDouble, tmp_path: Path) -> None:
    write_template(tmp_path, "new")
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        task_id = await bench.submit(template="new")
        await wait_until(lambda: prefect.calls.count("deployment") > 1, description="it has been looked for")
        assert (await bench.get(task_id)).status == "queued"
        prefect.deploy_now("new")
        await bench.run_of(task_id)


async def test_only_one_of_two_apis_dispatches_and_the_other_takes_over(
    settings: Settings, prefect: PrefectDouble
) -> None:
    async with open_bench(settings, prefect, gateway=prefect) as second:
        async with open_bench(settings, prefect, gateway=prefect) as first:
            ids = [await bench.submit() for bench in (first, second) for _ in range(5)]
            for task_id in ids:
                await first.run_of(task_id)
            assert prefect.calls.count("create_run") == 10
            assert len(prefect._subscribers) == 1
        ids.append(await second.submit())
        await second.run_of(ids[-1])
    assert len(await prefect.all_runs()) == 11
