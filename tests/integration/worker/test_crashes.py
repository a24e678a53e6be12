"""Processes that die, and what becomes of the runs they had."""

from __future__ import annotations

import os
import signal
from uuid import UUID

import psutil
from prefect.states import Pending

from ai_task_orchestra import protocol
from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench, WorkerProcess, alive


async def test_a_run_whose_process_dies_is_crashed_and_says_why(bench: WorkerBench) -> None:
    with bench.worker(log_level="DEBUG") as worker:
        killed, exited = await bench.submit("wait"), await bench.submit("end_process", code=3)
        os.kill(await _pid(bench, killed), signal.SIGKILL)
        state = await bench.reaches(killed, "Crashed")
        assert state.message == "the process running this task was killed by signal 9"
        state = await bench.reaches(exited, "Crashed")
        assert state.message == "the process running this task exited with code 3"
        # The next runs are executed; also after a parked child and the template process were killed.
        for parked in await worker.parked(3):
            parked.kill()
        await bench.reaches(await bench.submit("noop"), "Completed")
        template = _template(worker)
        stubborn, pids = await bench.submit_stubborn()
        template.kill()
        assert "ended together with" in ((await bench.reaches(stubborn, "Crashed")).message or "")
        await wait_until(lambda: not alive(pids), description="its processes are gone")
        await bench.reaches(await bench.submit("noop"), "Completed")


async def test_a_child_that_dies_before_it_accepts_costs_nothing(bench: WorkerBench) -> None:
    with bench.worker(worker_limit=1, log_level="DEBUG") as worker:
        parked = await worker.parked(2)
        for child in parked:
            child.suspend()  # it can't accept a run
        run = await bench.submit("noop")
        await bench.reaches(run, "Pending")
        for child in parked:
            child.kill()
        await bench.reaches(run, "Completed")
        assert [state.name for state in await bench.states(run)] == ["Queued", "Pending", "Running", "Completed"]


async def test_nothing_outlives_a_killed_worker(bench: WorkerBench) -> None:
    with bench.worker() as worker:
        _, pids = await bench.submit_stubborn()
        worker.stop(signal.SIGKILL)
        await wait_until(lambda: not worker.left() and not alive(pids), timeout=2, description="nothing is left")


async def test_a_worker_takes_the_place_of_a_lost_one_of_its_name(bench: WorkerBench) -> None:
    with bench.worker(worker_name="gpu-1") as worker:
        running = await bench.submit("wait")
        await bench.reaches(running, "Running")
        worker.stop(signal.SIGKILL)
    other = await bench.submit("wait")
    await bench.client.set_flow_run_state(other, Pending(message=protocol.claim_message("gpu-2")))
    with bench.worker(worker_name="gpu-1"):
        state = await bench.reaches(running, "Crashed")
        assert state.message == "The worker gpu-1 was lost; another one of its name has started."
        await bench.reaches(await bench.submit("noop"), "Completed")
        assert (await bench.read(other)).state_name == "Pending"


async def _pid(bench: WorkerBench, run_id: UUID) -> int:
    """The process of a running run, which says so a little after it is Running."""

    async def told() -> str:
        return ((await bench.read(run_id)).infrastructure_pid or "").rpartition(":")[2]

    await bench.reaches(run_id, "Running")
    return int(await wait_until(told, timeout=60, description="the run has a process id"))


def _template(worker: WorkerProcess) -> psutil.Process:
    return next(p for p in worker.template_processes() if p.ppid() == worker.process.pid)
