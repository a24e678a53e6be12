"""A Prefect as its own documentation sets it up: a server on PostgreSQL and a `process` worker, polling fast."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from benchmarks.load import Connection
from benchmarks.processes import Usage, clean_environment, running, usage_by_role
from benchmarks.times import TaskTimes
from tests.support import servers

POLL_SECONDS = 0.5
PAGE = 200

FLOW = """
from prefect import flow


@flow
def noop() -> None:
    pass
"""


@dataclass
class StockPrefect:
    """A running Prefect with one worker of two slots and one deployment."""

    url: str
    deployment_id: str
    roots: dict[str, int]
    database: asyncpg.Connection
    http: httpx.AsyncClient
    name: str = "stock"

    def connection(self) -> Connection:
        return Connection(self.url, {})

    def submission(self, connection: Connection, **more: Any) -> bytes:
        return connection.prepare("POST", f"/deployments/{self.deployment_id}/create_flow_run", {"parameters": {}})

    async def times(self, ids: Collection[str]) -> dict[str, TaskTimes]:
        found: dict[str, TaskTimes] = {}
        wanted = list(ids)
        for start in range(0, len(wanted), PAGE):
            body = {"flow_runs": {"id": {"any_": wanted[start : start + PAGE]}}, "limit": PAGE}
            for run in (await self.http.post("/flow_runs/filter", json=body)).json():
                if run["end_time"]:
                    moments = (run["created"], run["start_time"] or run["end_time"], run["end_time"])
                    found[run["id"]] = TaskTimes(*map(datetime.fromisoformat, moments))
        return found

    def usage(self) -> dict[str, Usage]:
        def role(process: psutil.Process, above: str) -> str:
            if process.pid == self.roots["worker"]:
                return "worker"
            if process.pid in self.roots.values():
                return "Prefect server" if process.pid == self.roots["server"] else "PostgreSQL"
            return "run processes" if above == "worker" else above

        return usage_by_role(self.roots.values(), role)

    async def commits(self) -> dict[str, int]:
        rows = await self.database.fetch("SELECT datname, xact_commit FROM pg_stat_database WHERE datname IS NOT NULL")
        return {row["datname"]: row["xact_commit"] for row in rows}


@contextlib.asynccontextmanager
async def stock_prefect() -> AsyncIterator[StockPrefect]:
    """Server, database and worker in folders of their own."""
    with servers.postgres() as postgres, servers.open_folder() as home:
        (home / "noop_flow.py").write_text(FLOW)
        port = servers.free_port()
        url = f"http://127.0.0.1:{port}/api"
        database_url = postgres.url("prefect")
        env = clean_environment(
            PREFECT_HOME=str(home / "prefect"),
            PREFECT_API_URL=url,
            PREFECT_API_DATABASE_CONNECTION_URL=database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
            PREFECT_WORKER_QUERY_SECONDS=str(POLL_SECONDS),
        )
        prefect = [sys.executable, "-m", "prefect"]
        server = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        worker = [*prefect, "worker", "start", "--pool", "stock", "--type", "process", "--limit", "2"]
        async with contextlib.AsyncExitStack() as stack:
            served = stack.enter_context(running(server, env=env, log=home / "server.log", cwd=home))
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30, trust_env=False))
            await _until(http, "/ready", home / "server.log")
            deployment_id = await _deploy(http, home)
            worked = stack.enter_context(running(worker, env=env, log=home / "worker.log", cwd=home))
            database = await asyncpg.connect(database_url)
            stack.push_async_callback(database.close)
            roots = {"server": served.pid, "worker": worked.pid, "postgres": _postmaster(str(postgres.data))}
            yield StockPrefect(url, deployment_id, roots, database, http)


async def _deploy(http: httpx.AsyncClient, home: Path) -> str:
    """The pool and the deployment of the flow, as `prefect deploy` would make them."""

    async def post(path: str, body: Any) -> Any:
        answer = await http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        answer.raise_for_status()
        return answer.json()

    await post("/work_pools/", {"name": "stock", "type": "process", "base_job_template": _job_template()})
    flow = await post("/flows/", {"name": "noop"})
    deployment = {
        "name": "noop",
        "flow_id": flow["id"],
        "work_pool_name": "stock",
        "path": str(home),
        "entrypoint": "noop_flow.py:noop",
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(home)}}],
    }
    return str((await post("/deployments/", deployment))["id"])


def _job_template() -> dict[str, Any]:
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()


def _postmaster(data: str) -> int:
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = process.info["cmdline"] or []
        if data in command and not command[0].startswith("postgres:"):
            return int(process.info["pid"])
    raise RuntimeError("PostgreSQL is not running")


async def _until(http: httpx.AsyncClient, path: str, log: Path) -> None:
    from tests.support.waiting import wait_until

    async def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return (await http.get(path)).status_code == 200
        return False

    await wait_until(ready, timeout=120, description=f"Prefect ready; log: {log.read_text()[-500:]}")
