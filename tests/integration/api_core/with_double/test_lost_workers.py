"""Workers whose heartbeat is missing lose their runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ai_task_orchestra.protocol import claim_message
from ai_task_orchestra.settings import Settings
from tests.support.core_bench import core_settings, open_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


async def test_a_run_whose_worker_died_before_it_could_sign_it_is_taken_too(
    settings: Settings, prefect: PrefectDouble, tmp_path: Path
) -> None:
    quick = core_settings(
        tmp_path, settings.database_url or "", settings.prefect_url, prefect.pool, worker_lease_seconds=0.6
    )
    await prefect.heartbeat("dead")
    async with open_bench(quick, prefect, gateway=prefect) as bench:
        task_id = await bench.submit()
        run_id = await bench.run_of(task_id)
        await prefect.set(run_id, "RUNNING", message=claim_message("dead"))  # its Pending was seen by nobody
        await bench.run_of(task_id, other_than=run_id)
        assert (await bench.get(task_id)).attempts[0].worker == "dead"


async def test_the_runs_of_a_worker_without_heartbeat_are_taken_from_it(
    settings: Settings, prefect: PrefectDouble, tmp_path: Path
) -> None:
    quick = core_settings(
        tmp_path, settings.database_url or "", settings.prefect_url, prefect.pool, worker_lease_seconds=0.6
    )
    alive = asyncio.Event()

    async def beat() -> None:
        while True:
            await prefect.heartbeat("alive")
            if not alive.is_set():
                await prefect.heartbeat("dying")
            await asyncio.sleep(0.05)

    async with open_bench(quick, prefect, gateway=prefect) as bench:
        beating = asyncio.create_task(beat())
        ids = [await bench.submit() for _ in range(3)]
        runs = [await bench.run_of(task_id) for task_id in ids]
        await prefect.start(runs[0], "alive")
        await prefect.start(runs[1], "dying")
        assert await prefect.claim(runs[2], "dying")
        await bench.status(ids[1], "running")

        alive.set()
        for task_id, run_id in zip(ids[1:], runs[1:], strict=True):
            await bench.run_of(task_id, other_than=run_id)
            attempt = (await bench.get(task_id)).attempts[0]
            assert (attempt.worker, attempt.outcome) == ("dying", "crashed")
            lost = await prefect.run(run_id)
            assert lost is not None and lost["state_type"] == "CRASHED"
        assert (await bench.get(ids[0])).flow_run_id == runs[0]
        beating.cancel()


@pytest.mark.parametrize("next_worker", [None, "other"])
async def test_a_claim_that_was_given_back_unnoticed_is_not_taken_from_a_lost_worker(
    settings: Settings, prefect: PrefectDouble, tmp_path: Path, next_worker: str | None
) -> None:
    quick = core_settings(
        tmp_path,
        settings.database_url or "",
        settings.prefect_url,
        prefect.pool,
        worker_lease_seconds=0.6,
        mirror_active_seconds=600,
        mirror_full_seconds=600,
        adopt_seconds=600,
    )
    await prefect.heartbeat("lost")
    async with open_bench(quick, prefect, gateway=prefect) as bench:

        async def mirrored_worker(wanted: str | None) -> bool:
            [row] = await bench.sql("SELECT worker, status FROM task")
            return row["worker"] == wanted or row["status"] != "queued"

        async def wait_for_worker(wanted: str | None) -> None:
            await wait_until(lambda: mirrored_worker(wanted), description=f"the row is with worker {wanted}")

        task_id = await bench.submit()
        run_id = await bench.run_of(task_id)
        assert await prefect.claim(run_id, "lost")
        await wait_for_worker("lost")
        prefect.hears_events = False
        assert (await prefect.set(run_id, "SCHEDULED", name="Queued"))["status"] == "ACCEPT"
        if next_worker:
            assert await prefect.claim(run_id, next_worker)
        await wait_for_worker(next_worker)

        run = await prefect.run(run_id)
        assert run is not None and run["state_type"] == ("PENDING" if next_worker else "SCHEDULED")
        task = await bench.get(task_id)
        assert (task.status, task.flow_run_id, len(task.attempts)) == ("queued", run_id, 0)
