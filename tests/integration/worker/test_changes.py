"""What goes on around the worker: new templates, Prefect away for a while."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.tcp_proxy import proxy_to
from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench


async def test_a_new_template_can_be_run_and_running_ones_go_on(bench: WorkerBench, tmp_path: Path) -> None:
    with bench.worker() as worker:
        running = await bench.submit("wait", seconds=4)
        await bench.reaches(running, "Running")
        templates = worker.template_processes()
        (tmp_path / "templates" / "fresh.yaml").write_text("name: fresh\n")
        fresh = await bench.submit("fresh")
        await bench.reaches(fresh, "Completed")
        await bench.logged(fresh, "made from a template")
        await bench.reaches(running, "Completed")
        await wait_until(
            lambda: not {p.pid for p in templates} & {p.pid for p in worker.template_processes()},
            description="the old template process has ended",
        )


async def test_the_worker_and_its_runs_survive_prefect_being_down_for_longer_than_a_lease(bench: WorkerBench) -> None:
    async with proxy_to(bench.api_url) as (proxy, address):
        with bench.worker(worker_limit=1, prefect_api_url=address, worker_lease_seconds=4) as worker:
            running = await bench.submit("wait", seconds=1)
            await bench.reaches(running, "Running")
            await proxy.cut()
            waiting = await bench.submit("noop")
            await wait_until(lambda: "worker.prefect_unreachable" in worker.log.read_text(), description="noticed")
            ends = time.time() + 5
            await wait_until(lambda: time.time() > ends, description="the flow has ended meanwhile")
            assert (await bench.read(running)).state_name == "Running"
            await proxy.open()
            await bench.reaches(running, "Completed", timeout=15)
            await bench.reaches(waiting, "Completed", timeout=15)
            assert worker.log.read_text().count("worker.prefect_unreachable") == 1
            await bench.logged(running, "Finished in state")
            await worker.stopped()


async def test_a_worker_waits_for_prefect_at_its_start_and_can_be_stopped_meanwhile(bench: WorkerBench) -> None:
    with bench.worker(prefect_api_url="http://127.0.0.1:9/api") as worker:
        await wait_until(lambda: "prefect_unreachable" in worker.log.read_text(), timeout=60, description="noticed")
        assert worker.process.poll() is None
        await worker.stopped()
