"""A cancelled run stops, with everything it has started."""

from __future__ import annotations

import time
import uuid

import pytest
from prefect.states import Cancelled

from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench, alive


@pytest.fixture
async def stubborn(served: WorkerBench) -> tuple[uuid.UUID, list[int]]:
    """A run, and its processes: a child, a session and a daemon, all ignoring SIGTERM."""
    return await served.submit_stubborn()


async def test_cancelling_stops_the_run_and_all_its_processes_within_ten_seconds(
    served: WorkerBench, stubborn: tuple[uuid.UUID, list[int]]
) -> None:
    run, pids = stubborn
    began = time.monotonic()
    await served.cancel(run)
    await served.reaches(run, "Cancelled")
    assert not alive(pids)
    assert time.monotonic() - began < 10


async def test_a_run_that_is_set_cancelled_directly_is_stopped_too(
    served: WorkerBench, stubborn: tuple[uuid.UUID, list[int]]
) -> None:
    run, pids = stubborn
    await served.client.set_flow_run_state(run, Cancelled(), force=True)
    await wait_until(lambda: not alive(pids), description="its processes are gone")
    assert (await served.read(run)).state_name == "Cancelled"


async def test_a_deleted_run_is_stopped(served: WorkerBench, stubborn: tuple[uuid.UUID, list[int]]) -> None:
    run, pids = stubborn
    await served.client.delete_flow_run(run)
    await wait_until(lambda: not alive(pids), description="its processes are gone")


async def test_what_a_finished_run_leaves_behind_is_killed(served: WorkerBench) -> None:
    run, pids = await served.submit_stubborn(seconds=1.5)
    await served.reaches(run, "Completed")
    await wait_until(lambda: not alive(pids), description="its processes are gone")


async def test_a_run_cancelled_before_it_runs_never_runs(bench: WorkerBench) -> None:
    with bench.worker(worker_limit=1, log_level="DEBUG") as worker:
        for child in await worker.parked(2):
            child.suspend()  # it can't accept a run
        claimed = await bench.submit("noop")
        await bench.reaches(claimed, "Pending")
        await bench.cancel(claimed)
        await bench.reaches(claimed, "Cancelled", timeout=10)
        await bench.reaches(await bench.submit("noop"), "Completed")
        assert "Running" not in [state.name for state in await bench.states(claimed)]
