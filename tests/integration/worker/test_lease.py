"""A worker that can't renew its lease has stopped its runs before anybody else begins them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ai_task_orchestra.lease import now
from tests.support.tcp_proxy import proxy_to
from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench, WorkerProcess, alive, open_bench

LEASE = 5.0


@pytest.fixture(scope="module")
def shared(prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, WorkerProcess]]:
    """A pool and its worker, shared by the tests of this module."""
    folder = tmp_path_factory.mktemp("lease")

    async def prepared() -> WorkerBench:
        async with open_bench(prefect_api_url, folder) as bench:
            return bench

    bench = asyncio.run(prepared())
    with bench.worker(worker_lease_seconds=LEASE) as worker:
        yield bench.pool, worker


@pytest.fixture
def worker(shared: tuple[str, WorkerProcess]) -> Iterator[WorkerProcess]:
    yield shared[1]
    shared[1].wake()


@pytest.fixture
async def pool(prefect_api_url: str, shared: tuple[str, WorkerProcess], tmp_path: Path) -> AsyncIterator[WorkerBench]:
    async with open_bench(prefect_api_url, tmp_path, shared[0]) as bench:
        yield bench


async def test_the_runs_of_a_worker_that_is_frozen_alone_end_without_it(
    pool: WorkerBench, worker: WorkerProcess
) -> None:
    run, pids = await pool.submit_stubborn()
    worker.freeze(alone=True)
    await wait_until(lambda: not alive(pids), timeout=4 * LEASE, description="its processes have ended by themselves")
    worker.wake()
    await pool.reaches(run, "Crashed")
    await pool.reaches(await pool.submit("noop"), "Completed")


async def test_a_worker_that_wakes_up_with_its_family_stops_its_runs_at_once(
    pool: WorkerBench, worker: WorkerProcess
) -> None:
    run, pids = await pool.submit_stubborn()
    worker.freeze()
    over = now() + LEASE
    await wait_until(lambda: now() > over, description="the lease is over")
    assert alive(pids) == pids
    worker.wake()
    await wait_until(lambda: not alive(pids), timeout=5, description="its processes are gone")
    await pool.reaches(run, "Crashed")
    await pool.reaches(await pool.submit("noop"), "Completed")


async def test_a_worker_that_is_cut_off_stops_its_runs(bench: WorkerBench) -> None:
    async with proxy_to(bench.api_url) as (proxy, address):
        with bench.worker(prefect_api_url=address, worker_lease_seconds=LEASE):
            run, pids = await bench.submit_stubborn()
            proxy.vanish()
            await wait_until(lambda: not alive(pids), timeout=4 * LEASE, description="its processes are gone")
            assert (await bench.read(run)).state_name == "Running"
            await proxy.reappear()
            assert "had no contact with Prefect" in ((await bench.reaches(run, "Crashed")).message or "")
            await bench.reaches(await bench.submit("noop"), "Completed")
