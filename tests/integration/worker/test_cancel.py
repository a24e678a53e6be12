"""A cancelled run stops, with everything it has started."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import psutil
import pytest
from prefect.states import Cancelled

from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench


@pytest.fixture
async def stubborn(served: WorkerBench, tmp_path: Path) -> tuple[uuid.UUID, list[int]]:
    """A run, and its processes: a child, a session and a daemon, all ignoring SIGTERM."""
    run = await served.submit("leave_processes", pids=str(tmp_path / "pids"))
    pids = await _pids(tmp_path)
    await served.reaches(run, "Running")
    return run, pids


async def test_cancelling_stops_the_run_and_all_its_processes_within_ten_seconds(
    served: WorkerBench, stubborn: tuple[uuid.UUID, list[int]]
) -> None:
    run, pids = stubborn
    began = time.monotonic()
    await served.cancel(run)
    await served.reaches(run, "Cancelled")
    assert not _alive(pids)
    assert time.monotonic() - began < 10


async def test_a_run_that_is_set_cancelled_directly_is_stopped_too(
    served: WorkerBench, stubborn: tuple[uuid.UUID, list[int]]
) -> None:
    run, pids = stubborn
    await served.client.set_flow_run_state(run, Cancelled(), force=True)
    await wait_until(lambda: not _alive(pids), description="its processes are gone")
    assert (await served.read(run)).state_name == "Cancelled"


async def test_a_deleted_run_is_stopped(served: WorkerBench, stubborn: tuple[uuid.UUID, list[int]]) -> None:
    run, pids = stubborn
    await served.client.delete_flow_run(run)
    await wait_until(lambda: not _alive(pids), description="its processes are gone")


async def test_what_a_finished_run_leaves_behind_is_killed(served: WorkerBench, tmp_path: Path) -> None:
    run = await served.submit("leave_processes", pids=str(tmp_path / "pids"), seconds=1.5)
    pids = await _pids(tmp_path)
    await served.reaches(run, "Completed")
    await wait_until(lambda: not _alive(pids), description="its processes are gone")


async def test_a_run_cancelled_before_it_runs_never_runs(bench: WorkerBench) -> None:
    with bench.worker(worker_limit=1, log_level="DEBUG") as worker:
        parked = await wait_until(worker.parked, timeout=60, description="a parked child")
        parked[0].suspend()  # it can't accept a run
        claimed = await bench.submit("noop")
        await bench.reaches(claimed, "Pending")
        await bench.cancel(claimed)
        await bench.reaches(claimed, "Cancelled", timeout=10)
        await bench.reaches(await bench.submit("noop"), "Completed")
        assert "Running" not in [state.name for state in await bench.states(claimed)]


async def _pids(folder: Path) -> list[int]:
    def written() -> list[int]:
        path = folder / "pids"
        found = [int(line) for line in path.read_text().split()] if path.exists() else []
        return found if len(found) == 3 else []

    return await wait_until(written, timeout=60, description="the three processes are there")


def _alive(pids: list[int]) -> list[int]:
    alive = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.NoSuchProcess:
            pass
    return alive
