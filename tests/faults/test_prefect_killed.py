"""The Prefect server killed while a run is under way, and started again after the run has ended (F14)."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from api.migrate import upgrade
from tests.support import servers, worker_bench
from tests.support.fault_bench import FINAL, FaultBench
from tests.support.prefect_bench import PrefectBench
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

OUTAGE_SECONDS = 6
TEMPLATE = """
name: {name}
description: Waits.
parameters:
  - {{name: seconds, type: number, required: true, description: How long}}
steps:
  - {{type: wait, seconds: "{{{{seconds}}}}"}}
"""


class OwnPrefect:
    """A Prefect server that only this test uses, on a database that has Prefect's tables already."""

    def __init__(self, home: Path, database_url: str) -> None:
        self._home = home
        self._port = servers.free_port()
        self._environment = servers.prefect_environment(home) | {
            "PREFECT_API_DATABASE_CONNECTION_URL": database_url.replace("postgresql://", "postgresql+asyncpg://", 1)
        }
        self._running = ExitStack()
        self._process: subprocess.Popen[bytes]
        self.url = f"http://127.0.0.1:{self._port}/api"

    async def start(self) -> None:
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)]
        started = servers.process(argv, env=self._environment, log=self._home / "prefect.log", cwd=self._home)
        self._process = self._running.enter_context(started)
        await wait_until(self._ready, timeout=90, description="Prefect is ready")

    async def _ready(self) -> bool:
        await asyncio.sleep(0.2)
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient() as http:
                return (await http.get(f"{self.url}/ready")).status_code == 200
        return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def own_prefect(
    postgres_server: EmbeddedPostgres, prefect_api_url: str, tmp_path: Path
) -> AsyncIterator[OwnPrefect]:
    """Beside the shared server, which has made the tables."""
    own = OwnPrefect(tmp_path, postgres_server.url("prefect"))
    try:
        await own.start()
        yield own
    finally:
        own.close()


async def test_a_run_that_ends_while_prefect_is_dead_completes_when_it_is_back(
    own_prefect: OwnPrefect, postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    url = await servers.new_database(postgres_server)
    await upgrade(url)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=own_prefect.url, timeout=60))
        prefect = await PrefectBench.prepare(http)
        prefect.deployment_id = await prefect.deploy(prefect.template, entrypoint=f"{worker_bench.CATALOG}.wait")
        bench = await stack.enter_async_context(FaultBench(tmp_path, prefect, url).opened())
        (tmp_path / "templates" / f"{prefect.template}.yaml").write_text(TEMPLATE.format(name=prefect.template))
        workers = await stack.enter_async_context(worker_bench.open_bench(own_prefect.url, tmp_path, prefect.pool))
        api = await stack.enter_async_context(bench.api())
        stack.enter_context(workers.worker(worker_limit=1))
        running = await api.accepted(parameters={"seconds": 2})
        await api.reaches(running, "running")
        own_prefect.kill()
        waiting = await api.accepted(parameters={"seconds": 0})
        await asyncio.sleep(OUTAGE_SECONDS)
        assert (await api.get(running))["status"] == "running"
        await own_prefect.start()
        for task_id in (running, waiting):
            task = await api.reaches(task_id, *FINAL)
            assert (task["status"], len(task["attempts"])) == ("completed", 1)
            assert len(await prefect.all_runs(task_id)) == 1
        states = [state.name for state in await workers.states((await api.get(running))["flow_run_id"])]
        assert states == ["Queued", "Pending", "Running", "Completed"]
