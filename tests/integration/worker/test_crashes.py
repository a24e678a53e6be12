"""Processes that die, and what becomes of the runs they had."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
from prefect.client.schemas.objects import FlowRun

from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench, WorkerProcess


async def test_a_run_whose_process_dies_is_crashed_and_says_why(bench: WorkerBench) -> None:
    with bench.worker(log_level="DEBUG") as worker:
        killed, exited = await bench.submit("wait"), await bench.submit("end_process", code=3)
        await bench.reaches(killed, "Running")
        os.kill(_pid(await bench.read(killed)), signal.SIGKILL)
        state = await bench.reaches(killed, "Crashed")
        assert state.message == "the process running this task was killed by signal 9"
        state = await bench.reaches(exited, "Crashed")
        assert state.message == "the process running this task exited with code 3"
        # The next runs are executed; also after a parked child and the template process were killed.
        parked = await wait_until(worker.parked, description="a parked child")
        parked[0].kill()
        await bench.reaches(await bench.submit("noop"), "Completed")
        template = _template(worker)
        waiting = await bench.submit("wait")
        await bench.reaches(waiting, "Running")
        template.kill()
        assert "ended together with" in ((await bench.reaches(waiting, "Crashed")).message or "")
        await bench.reaches(await bench.submit("noop"), "Completed")


async def test_a_child_that_dies_before_it_accepts_costs_nothing(bench: WorkerBench) -> None:
    with bench.worker(worker_limit=1, log_level="DEBUG") as worker:
        parked = await wait_until(worker.parked, timeout=60, description="a parked child")
        parked[0].suspend()  # it can't accept a run
        run = await bench.submit("noop")
        await bench.reaches(run, "Pending")
        parked[0].kill()
        await bench.reaches(run, "Completed")
        assert [state.name for state in await bench.states(run)] == ["Queued", "Pending", "Running", "Completed"]


async def test_nothing_outlives_a_killed_worker(bench: WorkerBench, tmp_path: Path) -> None:
    with bench.worker() as worker:
        run = await bench.submit("leave_processes", pids=str(tmp_path / "pids"))
        await bench.reaches(run, "Running")
        await wait_until(lambda: len(worker.below()) >= 6, timeout=60, description="all processes are there")
        worker.stop(signal.SIGKILL)
        await wait_until(lambda: not worker.left(), timeout=2, description="nothing is left")


def _pid(run: FlowRun) -> int:
    return int((run.infrastructure_pid or "").rpartition(":")[2])


def _template(worker: WorkerProcess) -> psutil.Process:
    return next(p for p in worker.template_processes() if p.ppid() == worker.process.pid)
