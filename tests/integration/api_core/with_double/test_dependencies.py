"""Tasks that wait for others: held in Prefect, released, or cancelled with them."""

from __future__ import annotations

import asyncio
import uuid
from uuid import UUID

import pytest
from sqlalchemy import text

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import DependencyFailedError, UnknownDependencyError
from api import live_store
from tests.support.core_bench import CoreBench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


async def test_a_dependent_is_held_in_prefect_and_released_when_its_dependency_completes(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    first = await bench.submit()
    second = await bench.submit(depends_on=[first])
    first_run, second_run = await bench.run_of(first), await bench.run_of(second, state=protocol.STATE_HELD)
    assert await prefect.due() == [first_run]

    await prefect.start(first_run)
    await prefect.complete(first_run)

    assert await bench.run_of(second, state=protocol.STATE_QUEUED) == second_run
    assert await prefect.due() == [second_run]
    assert (await bench.get(second)).status == "queued"


async def test_a_dependent_of_completed_tasks_is_runnable_at_once(bench: CoreBench, prefect: PrefectDouble) -> None:
    first = await bench.submit()
    run_id = await bench.run_of(first)
    await prefect.start(run_id)
    await prefect.complete(run_id)
    await bench.status(first, "completed")

    second = await bench.submit(depends_on=[first, first])

    await bench.run_of(second, state=protocol.STATE_QUEUED)
    assert (await bench.get(second)).depends_on == [first, first]


async def test_a_dependent_waits_for_all_of_its_dependencies(bench: CoreBench, prefect: PrefectDouble) -> None:
    several = [await bench.submit() for _ in range(3)]
    last = await bench.submit(depends_on=several)
    for task_id in several:
        await bench.run_of(last, state=protocol.STATE_HELD)
        run_id = await bench.run_of(task_id)
        await prefect.start(run_id)
        await prefect.complete(run_id)
        await bench.status(task_id, "completed")
    await bench.run_of(last, state=protocol.STATE_QUEUED)


async def test_a_failure_cancels_everything_that_waits_and_says_why(bench: CoreBench, prefect: PrefectDouble) -> None:
    root = await bench.submit()
    middle = await bench.submit(depends_on=[root])
    leaf = await bench.submit(depends_on=[middle])
    anyway = await bench.submit(depends_on=[middle], on_dependency_failure="run")
    leaf_run = await bench.run_of(leaf, state=protocol.STATE_HELD)
    root_run = await bench.run_of(root)

    await prefect.start(root_run)
    await prefect.fail(root_run)

    assert (await bench.status(root, "failed")).error == {
        "type": "step_failed",
        "message": "step 'x': broke",
        "step": "x",
    }
    for task_id, named in ((middle, [root]), (leaf, [middle, root])):
        error = (await bench.status(task_id, "cancelled")).error
        assert error is not None
        assert error["type"] == "dependency_failed"
        assert all(name in error["message"] for name in named)
    await bench.run_of(leaf, state="Cancelled")
    assert (await bench.get(leaf)).flow_run_id == leaf_run
    await bench.run_of(anyway, state=protocol.STATE_QUEUED)


async def test_dependencies_that_cannot_complete_are_refused(bench: CoreBench) -> None:
    cancelled = await bench.submit()
    await bench.cancel(cancelled)
    await bench.status(cancelled, "cancelled")
    stranger = str(uuid.uuid4())

    with pytest.raises(UnknownDependencyError, match=stranger):
        await bench.submit(depends_on=[stranger])
    with pytest.raises(DependencyFailedError, match=cancelled):
        await bench.submit(depends_on=[cancelled])
    with pytest.raises(UnknownDependencyError):
        await bench.service.submit(bench.new(depends_on=[cancelled]), tenant="somebody else")

    taken = await bench.submit(depends_on=[cancelled], on_dependency_failure="run")
    await bench.run_of(taken, state=protocol.STATE_QUEUED)


async def test_no_release_is_missed_when_submissions_and_completions_race(
    bench: CoreBench, prefect: PrefectDouble
) -> None:
    for _ in range(4):
        first = await bench.submit()
        run_id = await bench.run_of(first)
        await prefect.start(run_id)

        _, *dependents = await asyncio.gather(
            prefect.complete(run_id), *(bench.submit(depends_on=[first]) for _ in range(6))
        )

        await bench.status(first, "completed")
        rows = await bench.sql("SELECT id, unresolved FROM task WHERE id = ANY($1::uuid[])", dependents)
        assert {row["unresolved"] for row in rows} == {0}
    released = "SELECT count(*) AS n FROM task WHERE phase = 'ready' AND status = 'queued'"

    async def all_ready() -> bool:
        return bool((await bench.sql(released))[0]["n"] == 24)

    await wait_until(all_ready, timeout=30, description="every dependent is ready in Prefect")


async def test_a_submission_waits_for_a_dependency_that_is_just_ending(bench: CoreBench) -> None:
    """Else it would wait for something that has happened already."""
    first = await bench.submit()
    await bench.run_of(first)
    async with bench.core.sessions.begin() as ending:
        row = await live_store.lock(ending, UUID(first))
        assert row is not None
        await live_store.finish(ending, row, "completed")
        second = asyncio.create_task(bench.submit(depends_on=[first]))
        done, _ = await asyncio.wait({second}, timeout=0.3)
        assert not done
    counted = await bench.sql("SELECT unresolved FROM task WHERE id = $1::uuid", await second)
    assert counted[0]["unresolved"] == 0


async def test_an_end_waits_for_a_submission_that_depends_on_it(bench: CoreBench) -> None:
    """Else it would not see whom to release."""
    first, second = await bench.submit(), await bench.submit()
    for task_id in (first, second):
        await bench.run_of(task_id)
    async with bench.core.sessions.begin() as submitting:
        share = text("SELECT id FROM task WHERE id = CAST(:id AS uuid) FOR SHARE")
        await submitting.execute(share, {"id": first})
        ending = asyncio.create_task(bench.cancel(first))
        done, _ = await asyncio.wait({ending}, timeout=0.3)
        assert not done
        edge = text("INSERT INTO dependency VALUES (CAST(:task AS uuid), CAST(:up AS uuid), false)")
        await submitting.execute(edge, {"task": second, "up": first})
        await submitting.execute(text("UPDATE task SET unresolved = 1 WHERE id = CAST(:id AS uuid)"), {"id": second})
    await ending
    await bench.status(second, "cancelled")


async def test_a_chain_of_500_and_a_fan_in_of_1000_are_cancelled_in_one_transaction(bench: CoreBench) -> None:
    root = await bench.submit(priority=1)
    await bench.run_of(root)
    chain = await _write_tasks(bench, 500)
    await _write_edges(bench, chain, [root, *chain[:-1]])
    others, [last] = await _write_tasks(bench, 999), await _write_tasks(bench, 1)
    await _write_edges(bench, [last] * 1000, [chain[-1], *others])

    await bench.cancel(root)

    assert (await bench.get(root)).status == "cancelled"
    counted = await bench.sql("SELECT count(*) AS n FROM task WHERE error->>'type' = 'dependency_failed'")
    assert counted[0]["n"] == 501
    ended = await bench.sql("SELECT count(DISTINCT completed_at) AS n FROM task WHERE error IS NOT NULL")
    assert ended[0]["n"] == 1
    error = (await bench.get(last)).error
    assert error is not None and root in error["message"] and chain[-1] in error["message"]


async def test_the_last_of_a_fan_in_of_1000_releases_and_none_before(bench: CoreBench, prefect: PrefectDouble) -> None:
    first, last = await bench.submit(), await bench.submit()
    others, [waiting] = await _write_tasks(bench, 998), await _write_tasks(bench, 1)
    await _write_edges(bench, [waiting] * 1000, [first, last, *others])
    await bench.sql("UPDATE dependency SET resolved = true WHERE upstream_id = ANY($1::uuid[])", others)
    await bench.sql("UPDATE task SET unresolved = 2 WHERE id = $1::uuid", waiting)
    for task_id, left in ((first, 1), (last, 0)):
        run_id = await bench.run_of(task_id)
        await prefect.start(run_id)
        await prefect.complete(run_id)
        await bench.status(task_id, "completed")
        assert (await bench.sql("SELECT unresolved FROM task WHERE id = $1::uuid", waiting))[0]["unresolved"] == left


async def _write_tasks(bench: CoreBench, count: int) -> list[str]:
    """Rows of a pool that nobody dispatches."""
    statement = """
        INSERT INTO task (id, tenant, template, parameters, priority, work_pool)
        SELECT gen_random_uuid(), 'default', 'work', '{}', 5, 'elsewhere' FROM generate_series(1, $1::int)
        RETURNING id
    """
    return [str(row["id"]) for row in await bench.sql(statement, count)]


async def _write_edges(bench: CoreBench, tasks: list[str], upstream: list[str]) -> None:
    await bench.sql("INSERT INTO dependency SELECT *, false FROM unnest($1::uuid[], $2::uuid[])", tasks, upstream)
    await bench.sql(
        "UPDATE task SET unresolved = (SELECT count(*) FROM dependency WHERE task_id = id) WHERE id = ANY($1::uuid[])",
        tasks,
    )
