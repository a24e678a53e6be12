"""Workers whose heartbeat is missing lose their runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ai_task_orchestra.protocol import claim_message
from ai_task_orchestra.settings import Settings
from tests.support.core_bench import core_settings, open_bench
from tests.support.prefect_double import PrefectDouble


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
