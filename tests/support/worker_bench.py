"""A work pool of its own for a worker test: queues, deployments of the sample flows, runs, and the worker process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.states import Cancelling, Scheduled

from ai_task_orchestra import protocol
from tests.support import servers
from tests.support.waiting import wait_until

CATALOG = "tests.support.sample_catalog"
CHECKOUT = Path(__file__).parents[2]


class WorkerBench:
    """Makes runs in one work pool and watches them."""

    def __init__(self, client: PrefectClient, api_url: str, folder: Path, pool: str | None = None) -> None:
        self.client = client
        self.api_url = api_url
        self.folder = folder
        self.pool = pool or f"pool-{uuid.uuid4().hex[:8]}"
        self._deployments: dict[str, uuid.UUID] = {}

    async def prepare(self) -> None:
        """Make the pool with its ten queues."""
        pool = WorkPoolCreate(name=self.pool, type=protocol.WORKER_TYPE, base_job_template={})
        await self.client.create_work_pool(pool)
        for priority in reversed(protocol.PRIORITIES):
            await self.client.create_work_queue(
                protocol.queue_name(priority),
                priority=protocol.prefect_queue_priority(priority),
                work_pool_name=self.pool,
            )

    async def deployment(self, flow: str, *, entrypoint: str | None = None, **options: Any) -> uuid.UUID:
        """The deployment of a flow in the sample catalog, or of another entrypoint."""
        if flow not in self._deployments:
            flow_id = await self.client.create_flow_from_name(flow)
            self._deployments[flow] = await self.client.create_deployment(
                flow_id,
                f"{flow}-{self.pool}",
                entrypoint=entrypoint or f"{CATALOG}.{flow}",
                work_pool_name=self.pool,
                work_queue_name=protocol.queue_name(protocol.DEFAULT_PRIORITY),
                **options,
            )
        return self._deployments[flow]

    async def submit(self, flow: str, *, priority: int = protocol.DEFAULT_PRIORITY, **parameters: Any) -> uuid.UUID:
        """A run of a sample flow, due now."""
        run = await self.client.create_flow_run_from_deployment(
            await self.deployment(flow),
            parameters=parameters,
            work_queue_name=protocol.queue_name(priority),
            state=Scheduled(name=protocol.STATE_QUEUED),
        )
        return run.id

    async def submit_stubborn(self, seconds: float = 60.0) -> tuple[uuid.UUID, list[int]]:
        """A running run, and the pids of its child, its session and its daemon, which all ignore SIGTERM."""
        path = self.folder / "pids"
        run = await self.submit("leave_processes", pids=str(path), seconds=seconds)

        def written() -> list[int]:
            found = [int(line) for line in path.read_text().split()] if path.exists() else []
            return found if len(found) == 3 else []

        return run, await wait_until(written, timeout=60, description="the three processes are there")

    async def read(self, run_id: uuid.UUID) -> FlowRun:
        return await self.client.read_flow_run(run_id)

    async def reaches(self, run_id: uuid.UUID, state: str, *, timeout: float = 60.0) -> State[Any]:
        """The run's state once it has this name."""

        async def there() -> State[Any] | None:
            await asyncio.sleep(0.07)  # looking costs the server more than the runs do
            found: State[Any] | None = (await self.read(run_id)).state
            return found if found and found.name == state else None

        return await wait_until(there, timeout=timeout, description=f"run is {state}")  # type: ignore[no-any-return]

    async def cancel(self, run_id: uuid.UUID) -> None:
        """What "cancel" does in Prefect's user interface."""
        await self.client.set_flow_run_state(run_id, Cancelling())

    async def states(self, run_id: uuid.UUID) -> list[State]:
        """All states the run has had, in order."""
        states: list[State[Any]] = await self.client.read_flow_run_states(run_id)
        return sorted(states, key=lambda state: state.timestamp)

    async def logs(self, run_id: uuid.UUID) -> list[str]:
        """The messages of the run's first 200 log lines."""
        lines = await self.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
        return [line.message for line in lines]

    async def logged(self, run_id: uuid.UUID, text: str) -> list[str]:
        """The same, once one of them contains `text`."""

        async def there() -> list[str]:
            lines = await self.logs(run_id)
            return lines if any(text in line for line in lines) else []

        return await wait_until(there, timeout=30, description=f"{text!r} is logged")

    async def task_runs(self, run_id: uuid.UUID) -> list[TaskRun]:
        """The task runs of the run."""
        return await self.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))

    async def span(self, run_id: uuid.UUID) -> tuple[datetime, datetime]:
        """When a finished run started and ended."""
        run = await self.read(run_id)
        assert run.start_time and run.end_time
        return run.start_time, run.end_time

    def environment(
        self, *, prefect_api_url: str | None = None, ollama_host: str | None = None, **settings: Any
    ) -> dict[str, str]:
        """The environment of a worker of this pool; `settings` without their prefix."""
        own = {
            "home": self.folder / "home",
            "templates_dir": self.folder / "templates",
            "catalog_module": CATALOG,
            "worker_limit": 2,
            "worker_heartbeat_seconds": 1,
            "worker_poll_seconds": 1,
        } | settings
        return (
            servers.prefect_environment(self.folder / "prefect")
            | {
                "PREFECT_API_URL": prefect_api_url or self.api_url,
                "PYTHONPATH": str(CHECKOUT),
                "PREFECT_LOGGING_LEVEL": "INFO",
            }
            | ({"OLLAMA_HOST": ollama_host} if ollama_host else {})
            | {f"ORCHESTRA_{name.upper()}": str(value) for name, value in own.items()}
        )

    @contextlib.contextmanager
    def worker(self, *, argv: list[str] | None = None, **settings: Any) -> Iterator[WorkerProcess]:
        """A worker process; at the end it is stopped, and nothing of it may be left."""
        (self.folder / "templates").mkdir(exist_ok=True)
        log = self.folder / "worker.log"
        command = argv or [sys.executable, "-m", "ai_task_orchestra.worker", "--pool", self.pool]
        with servers.process(command, env=self.environment(**settings), log=log, cwd=CHECKOUT) as process:
            try:
                yield WorkerProcess(process, log)
            except BaseException:
                print(log.read_text())  # what pytest shows of a failed test
                raise


class WorkerProcess:
    """A running worker and everything below it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self._seen: dict[int, psutil.Process] = {}

    def below(self) -> list[psutil.Process]:
        """All living processes below the worker."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen |= {child.pid: child for child in found}
        return found

    def left(self) -> list[psutil.Process]:
        """What was seen below the worker at any time and is still alive."""
        self.below()
        return [p for p in self._seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The worker's log lines of this event."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    async def parked(self, count: int) -> list[psutil.Process]:
        """The children that wait for a run, once they are `count`; for workers with log level DEBUG."""

        def waiting() -> list[psutil.Process]:
            pids = {event["pid"] for event in self.events("worker.child_parked")}
            pids -= {event["pid"] for event in self.events("worker.run_started")}
            found = [child for child in self.below() if child.pid in pids]
            return found if len(found) == count else []

        return await wait_until(waiting, timeout=60, description=f"{count} parked children")

    def freeze(self, *, alone: bool = False) -> None:
        """Stop the worker in the middle of whatever it does; its whole family too, unless `alone`."""
        for process in [psutil.Process(self.process.pid), *([] if alone else self.below())]:
            process.suspend()

    def wake(self) -> None:
        """Let all of them go on."""
        for process in [*self.below(), psutil.Process(self.process.pid)]:
            process.resume()

    def template_processes(self) -> list[psutil.Process]:
        return [p for p in self.below() if "ai_task_orchestra.worker.template_process" in " ".join(p.cmdline())]

    async def stopped(self, number: int = signal.SIGTERM) -> None:
        """Stop the worker (again, if it was asked before), wait for its end, and see that nothing of it is left."""
        self.stop(number)
        await self.ended()

    async def ended(self) -> None:
        """Wait for the worker's end, and see that nothing of it is left."""
        await wait_until(lambda: self.process.poll() is not None, timeout=30, description="the worker has ended")
        assert self.process.returncode == 0
        assert not self.left()

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.below()
        os.kill(self.process.pid, number)


def alive(pids: list[int]) -> list[int]:
    """Which of these processes live (a zombie does not)."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


@contextlib.asynccontextmanager
async def open_bench(api_url: str, folder: Path, pool: str | None = None) -> AsyncIterator[WorkerBench]:
    """A bench with a new pool, or with the `pool` that another bench has made."""
    async with PrefectClient(api_url) as client:
        bench = WorkerBench(client, api_url, folder, pool)
        if pool is None:
            await bench.prepare()
        yield bench
