"""A key's limit on running tasks: never more than that at once, in order of urgency, and nobody else waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from ai_task_orchestra import protocol
from ai_task_orchestra.settings import Settings
from api.admission import admit
from api.database import open_engine, sessions_of
from api.identity import Limits
from api.keys import ApiKeyStore, NewKey
from tests.support.core_bench import CoreBench, open_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


async def startable(prefect: PrefectDouble, *task_ids: str) -> list[str]:
    """Those of the tasks that a worker could start now, or has, the earlier ones first."""
    runs = {task: await prefect.all_runs(task) for task in task_ids}
    over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    held = protocol.STATE_HELD
    return [
        task
        for task, found in runs.items()
        if any(run["state_type"] not in over and run["state_name"] != held for run in found)
    ]


async def until_startable(prefect: PrefectDouble, wanted: list[str], *task_ids: str) -> None:
    async def so() -> bool:
        return sorted(await startable(prefect, *task_ids)) == sorted(wanted)

    await wait_until(so, description="exactly the expected tasks can be started")


async def test_only_so_many_tasks_of_a_key_are_in_prefect_and_the_next_follows_when_one_ends(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    by = await bench.holder(max_running=2)
    tasks = [await bench.submit(by=by) for _ in range(5)]
    free = await bench.submit()
    await bench.run_of(free)
    await until_startable(prefect, tasks[:2], *tasks)
    for number in range(5):
        run_id = await bench.run_of(tasks[number])
        await prefect.start(run_id)
        await bench.status(tasks[number], "running")
        assert len(await startable(prefect, *tasks)) <= 2
        await prefect.complete(run_id)
        await until_startable(prefect, tasks[number + 1 : number + 3], *tasks)


async def test_a_full_key_with_a_long_queue_keeps_nobody_else_out_of_the_window(
    settings: Settings, prefect: PrefectDouble
) -> None:
    settings = settings.model_copy(update={"dispatch_window": 3})
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        by = await bench.holder(max_running=1)
        tasks = [await bench.submit(by=by, priority=10) for _ in range(8)]
        others = [await bench.submit(priority=1) for _ in range(2)]
        for other in others:
            await bench.run_of(other)
        await until_startable(prefect, tasks[:1], *tasks)


async def test_the_most_urgent_task_of_a_key_is_let_in_first(bench: CoreBench, prefect: PrefectDouble) -> None:
    by = await bench.holder(max_running=1)
    first = await bench.submit(by=by, priority=10)
    await prefect.start(await bench.run_of(first))
    low, high = await bench.submit(by=by, priority=2), await bench.submit(by=by, priority=9)
    raised = await bench.submit(by=by, priority=1)
    await bench.prioritise(raised, 10)
    for task in (raised, high, low):
        await prefect.complete(await bench.run_of(first))
        await until_startable(prefect, [task], low, high, raised)
        first = task
        await prefect.start(await bench.run_of(task))


async def test_a_task_that_nobody_has_started_gives_way_to_a_more_urgent_one(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    by = await bench.holder(max_running=2)
    running, low = await bench.submit(by=by, priority=1), await bench.submit(by=by, priority=2)
    await prefect.start(await bench.run_of(running))
    await bench.run_of(low)
    high = await bench.submit(by=by, priority=8)
    await until_startable(prefect, [running, high], running, low, high)
    assert (await bench.get(low)).priority == 2
    await prefect.complete(await bench.run_of(high))
    await until_startable(prefect, [running, low], running, low, high)


async def test_a_task_that_waits_for_others_takes_no_place_until_it_could_run(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    by = await bench.holder(max_running=1)
    parent = await bench.submit()
    children = [await bench.submit(by=by, depends_on=[parent]) for _ in range(3)]
    for child in children:
        await bench.run_of(child, state=protocol.STATE_HELD)
    alone = await bench.submit(by=by)
    await until_startable(prefect, [alone], alone, *children)
    await prefect.start(await bench.run_of(parent))
    await prefect.complete(await bench.run_of(parent))
    await bench.status(parent, "completed")
    for done, follows in zip([alone, *children], children, strict=False):
        assert await startable(prefect, alone, *children) == [done]
        await prefect.start(await bench.run_of(done))
        await prefect.complete(await bench.run_of(done))
        await until_startable(prefect, [follows], alone, *children)


async def test_a_task_that_waits_for_another_attempt_holds_no_place(
    bench: CoreBench, prefect: PrefectDouble, template: Any
) -> None:
    name = await template("work-again", retries=1, retry_delay_seconds=600)
    bench.library.refresh()
    by = await bench.holder(max_running=1)
    fails = await bench.submit(by=by, template=name)
    run_id = await bench.run_of(fails)
    other = await bench.submit(by=by)
    await prefect.start(run_id)
    await bench.status(fails, "running")
    await prefect.fail(run_id, retryable=True)
    await until_startable(prefect, [other], fails, other)
    await bench.sql("UPDATE task SET not_before = now() WHERE id = $1::uuid", fails)
    await prefect.start(await bench.run_of(other))
    assert await startable(prefect, fails, other) == [other]
    await prefect.complete(await bench.run_of(other))
    await until_startable(prefect, [fails], fails, other)


async def test_barred_tasks_can_be_cancelled_and_moved(bench: CoreBench, prefect: PrefectDouble) -> None:
    by = await bench.holder(max_running=1)
    first, parent = await bench.submit(by=by), await bench.submit()
    await bench.run_of(first)
    await bench.run_of(parent)
    waiting = await bench.submit(by=by)
    held = await bench.submit(by=by, depends_on=[parent])
    await bench.run_of(held, state=protocol.STATE_HELD)
    assert (await bench.prioritise(waiting, 4)).priority == 4
    assert (await bench.prioritise(held, 3)).priority == 3
    for task in (waiting, held):
        await bench.cancel(task)
        await bench.status(task, "cancelled")
    assert await startable(prefect, first, waiting, held) == [first]


async def test_two_leaders_at_once_let_in_no_more_than_one(settings: Settings) -> None:
    assert settings.database_url
    engine = open_engine(settings.database_url)
    sessions = sessions_of(engine)
    stored, _ = await ApiKeyStore(sessions).create(NewKey("holder", limits=Limits(max_running=1)))

    async def submit(priority: int) -> None:
        async with sessions.begin() as session:
            values = {"priority": priority, "key": stored.id}
            await session.execute(_INSERT_BARRED, values)

    async def lead() -> None:
        async with sessions.begin() as session:
            await admit(session)

    await submit(priority=1)
    async with sessions.begin() as first:
        await admit(first)
        await submit(priority=9)
        second = asyncio.create_task(lead())
        await asyncio.wait({second}, timeout=0.3)
    await second
    async with sessions() as session:
        taken = await session.scalar(text("SELECT count(*) FROM task WHERE NOT barred"))
    await engine.dispose()
    assert taken is not None
    assert taken <= 1


_INSERT_BARRED = text(
    """
    INSERT INTO task (id, tenant, template, parameters, priority, work_pool, api_key_id, barred)
    VALUES (gen_random_uuid(), 'default', 'work', '{}', :priority, 'pool', CAST(CAST(:key AS text) AS uuid), true)
    """
)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_leader_that_dies_while_it_creates_a_run_leaves_the_limit_as_it_was(
    settings: Settings, prefect: PrefectDouble, when: str
) -> None:
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        by = await bench.holder(max_running=1)
        first, parent = await bench.submit(by=by, priority=9), await bench.submit()
        await prefect.start(await bench.run_of(first))
        await prefect.start(await bench.run_of(parent))
        stop = prefect.stop("create_run", when)
        child = await bench.submit(by=by, depends_on=[parent])
        await asyncio.wait_for(stop.reached.wait(), 20)
        await prefect.complete(await bench.run_of(parent))
        await bench.status(parent, "completed")
    prefect.go_on()
    async with open_bench(settings, prefect, gateway=prefect) as bench:
        await bench.run_of(child, state=protocol.STATE_HELD)
        assert await startable(prefect, first, child) == [first]
        await prefect.complete(await bench.run_of(first))
        await until_startable(prefect, [child], first, child)
