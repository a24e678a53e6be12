"""Accepting tasks: durable, once per Idempotency-Key, with or without Prefect."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ai_task_orchestra.errors import IdempotencyMismatchError, NotFoundError, ParameterError
from ai_task_orchestra.settings import Settings
from tests.support.core_bench import TENANT, CoreBench, core_settings, open_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


async def test_twenty_equal_submissions_at_once_make_one_task(bench: CoreBench, prefect: PrefectDouble) -> None:
    async def submit() -> tuple[str, bool]:
        made = await bench.service.submit(bench.new(), tenant=TENANT, idempotency_key="key", body_hash="same")
        return made.task.id, made.created

    answers = await asyncio.gather(*(submit() for _ in range(20)))

    assert len({task_id for task_id, _ in answers}) == 1
    assert [created for _, created in answers].count(True) == 1
    await bench.run_of(answers[0][0])
    assert len(await prefect.all_runs()) == 1


async def test_a_replayed_key_shows_the_present_status_and_another_body_is_refused(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    first = await bench.service.submit(bench.new(), tenant=TENANT, idempotency_key="key", body_hash="a")
    run_id = await bench.run_of(first.task.id)
    await prefect.start(run_id)
    await bench.status(first.task.id, "running")

    again = await bench.service.submit(bench.new(), tenant=TENANT, idempotency_key="key", body_hash="a")
    other_tenant = await bench.service.submit(bench.new(), tenant="other", idempotency_key="key", body_hash="b")

    assert (again.created, again.task.id, again.task.status) == (False, first.task.id, "running")
    assert other_tenant.created
    with pytest.raises(IdempotencyMismatchError):
        await bench.service.submit(bench.new(), tenant=TENANT, idempotency_key="key", body_hash="b")


async def test_a_replay_answers_even_when_its_dependency_has_failed_since(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    upstream = await bench.submit()
    new = bench.new(depends_on=[upstream])
    first = await bench.service.submit(new, tenant=TENANT, idempotency_key="key", body_hash="a")
    await bench.cancel(upstream)
    await bench.status(first.task.id, "cancelled")

    again = await bench.service.submit(new, tenant=TENANT, idempotency_key="key", body_hash="a")

    assert (again.created, again.task.status) == (False, "cancelled")


async def test_what_prefect_would_evaluate_is_refused_before_anything_is_stored(bench: CoreBench) -> None:
    program = {"list": [{"deep": {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}}]}
    with pytest.raises(ParameterError) as refused:
        await bench.submit(parameters={"x": program, "y": 1})
    assert list(refused.value.problems) == ["x"]
    assert "7 * 7" not in str(refused.value)
    assert await bench.service.list(tenant=TENANT) == ([], 0)


async def test_a_task_submitted_while_prefect_is_away_waits_and_is_dispatched_when_it_is_back(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    prefect.is_down = True
    task_id = await bench.submit(priority=3)
    assert "prefect" in await bench.service.readiness()
    await asyncio.sleep(0.3)  # the dispatcher has tried: the row must not be left as if a run might exist
    assert (await bench.prioritise(task_id, 9)).priority == 9
    doomed = await bench.submit()
    await bench.cancel(doomed)
    assert (await bench.get(doomed)).status == "cancelled"

    prefect.is_down = False
    run = await prefect.run(await bench.run_of(task_id))
    assert run is not None and run["work_queue_name"] == "priority-9"
    assert await bench.service.readiness() == {}
    assert len(await prefect.all_runs()) == 1


async def test_readiness_names_a_missing_pool_and_missing_tables(
    tmp_path: Path, database_url: str, prefect_api_url: str, prefect: PrefectDouble
) -> None:
    bare = core_settings(tmp_path, database_url, prefect_api_url, "no-such-pool")
    async with open_bench(bare, prefect, gateway=prefect) as bench:
        missing = await bench.service.readiness()
    assert "api.migrate" in missing["database"]
    assert "no-such-pool" in missing["prefect"]


async def test_lists_are_newest_first_filtered_and_counted(bench: CoreBench, prefect: PrefectDouble) -> None:
    ids = [await bench.submit() for _ in range(5)]
    await bench.cancel(ids[2])
    await bench.status(ids[2], "cancelled")
    await bench.service.submit(bench.new(), tenant="other")

    views, total = await bench.service.list(tenant=TENANT, limit=2, offset=1)
    assert ([view.id for view in views], total) == ([ids[3], ids[2]], 5)
    views, total = await bench.service.list(tenant=TENANT, status="cancelled", template=prefect.template)
    assert ([view.id for view in views], total) == ([ids[2]], 1)
    assert await bench.service.list(tenant=TENANT, offset=9) == ([], 5)
    groups = await bench.service.by_status(tenant=TENANT, limit=3)
    assert set(groups) == {"queued", "running", "completed", "failed", "cancelled"}
    assert [view.id for view in groups["queued"]] == [ids[4], ids[3], ids[1]]
    with pytest.raises(NotFoundError):
        await bench.service.get(ids[0], tenant="other")


async def test_the_waiting_backlog_beyond_the_window_stays_out_of_prefect_until_it_is_urgent(
    settings: Settings, prefect: PrefectDouble, tmp_path: Path, prefect_api_url: str
) -> None:
    small = core_settings(tmp_path, settings.database_url or "", prefect_api_url, settings.work_pool, dispatch_window=3)
    async with open_bench(small, prefect, gateway=prefect) as bench:
        ids = [await bench.submit(priority=5) for _ in range(5)]

        async def three() -> bool:
            return len(await prefect.due()) == 3

        await wait_until(three, description="the window is full")
        urgent = await bench.submit(priority=10)
        await bench.run_of(urgent)
        assert (await bench.get(ids[3])).flow_run_id is None
        assert (await bench.get(ids[4])).flow_run_id is None

        stop = asyncio.Event()
        order: list[str] = []
        worker = asyncio.create_task(prefect.work_off(until=stop, order=order))
        await bench.status(ids[4], "completed", timeout=30)
        stop.set()
        await worker
        assert len(order) == 6
