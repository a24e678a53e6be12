"""How a worker stops: runs may finish within the grace time, and nothing of it is left."""

from __future__ import annotations

import signal
import sys

from ai_task_orchestra import protocol
from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench


async def test_sigterm_lets_runs_finish_and_claims_no_more(bench: WorkerBench) -> None:
    with bench.worker(worker_limit=1, worker_grace_seconds=30) as worker:
        running = await bench.submit("wait", seconds=2)
        await bench.reaches(running, "Running")
        worker.stop()
        waiting = await bench.submit("noop")
        await worker.ended()
        assert (await bench.read(running)).state_name == "Completed"
        assert (await bench.read(waiting)).state_name == "Queued"


async def test_after_the_grace_time_runs_are_handed_back(bench: WorkerBench) -> None:
    with bench.worker(worker_grace_seconds=0.5, worker_name="leaving") as worker:
        run = await bench.submit("wait")
        await bench.reaches(run, "Running")
        worker.stop()
        state = await bench.reaches(run, protocol.STATE_HANDED_BACK)
        assert (state.type, state.message) == ("CRASHED", "The worker leaving was stopped before the run had ended.")
        await worker.ended()


async def test_a_second_signal_means_now(bench: WorkerBench) -> None:
    with bench.worker(worker_grace_seconds=600) as worker:
        run = await bench.submit("wait")
        await bench.reaches(run, "Running")
        worker.stop()
        await wait_until(lambda: "worker.signal" in worker.log.read_text(), description="first signal seen")
        worker.stop(signal.SIGINT)
        await bench.reaches(run, protocol.STATE_HANDED_BACK, timeout=15)
        await worker.ended()


async def test_prefects_own_command_runs_our_worker(bench: WorkerBench) -> None:
    command = [sys.executable, "-m", "prefect", "worker", "start", "-p", bench.pool, "--type", "orchestra", "-n", "it"]
    with bench.worker(argv=command) as worker:
        run = await bench.submit("noop")
        await bench.reaches(run, "Completed")
        worker.stop()
        await worker.ended()
        workers = await bench.client.read_workers_for_work_pool(bench.pool)
        assert [known.name for known in workers] == ["it"]
