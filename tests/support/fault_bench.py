"""API processes between two proxies, a real PostgreSQL and a real Prefect: what the fault tests break and look at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from ai_task_orchestra import protocol
from tests.support import servers
from tests.support.api_app import KEY
from tests.support.core_bench import write_template
from tests.support.fault_proxy import FaultProxy, fault_proxy_to
from tests.support.prefect_bench import PrefectBench
from tests.support.waiting import wait_until

CHECKOUT = Path(__file__).parents[2]
FINAL = ("completed", "failed", "cancelled")
#: How fast the clockwork of an API under test runs.
QUICK = {
    "ORCHESTRA_MIRROR_ACTIVE_SECONDS": "0.5",
    "ORCHESTRA_MIRROR_FULL_SECONDS": "2",
    "ORCHESTRA_ADOPT_SECONDS": "1",
}


@dataclass
class ApiProcess:
    """One API process and a client with its key."""

    process: subprocess.Popen[bytes]
    http: httpx.AsyncClient
    template: str
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    async def post(
        self, mark: str = "", *, key: str | None = None, timeout: float = 60, **fields: Any
    ) -> httpx.Response:
        """Create a task whose parameters hold `mark`."""
        body = {"template": self.template, "parameters": {"x": {"mark": mark}}} | fields
        headers = {"Idempotency-Key": key} if key else {}
        return await self.http.post("/tasks", json=body, headers=headers, timeout=timeout)

    async def accepted(self, mark: str = "", **fields: Any) -> str:
        answer = await self.post(mark, **fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def patch(self, task_id: str, priority: int) -> httpx.Response:
        return await self.http.patch(f"/tasks/{task_id}/priority", params={"priority": priority})

    async def cancel(self, task_id: str) -> httpx.Response:
        return await self.http.delete(f"/tasks/{task_id}")

    async def get(self, task_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def reaches(self, task_id: str, *statuses: str, timeout: float = 60) -> dict[str, Any]:
        """The task once it has one of these statuses."""

        async def look() -> dict[str, Any] | None:
            await asyncio.sleep(0.1)  # looking costs as much as the work that is waited for
            task = await self.get(task_id)
            return task if task["status"] in statuses else None

        return await wait_until(look, timeout=timeout, description=f"task {task_id} is {' or '.join(statuses)}")

    async def run_of(self, task_id: str) -> str:
        """The task's flow run, once the row names one (as the mirror does after Prefect has it)."""

        async def look() -> str | None:
            await asyncio.sleep(0.05)
            return (await self.get(task_id)).get("flow_run_id")

        return await wait_until(look, timeout=60, description=f"task {task_id} has a flow run")

    async def clock_ahead(self) -> float:
        """By how many seconds its clock is ahead of ours, more or less."""
        date = (await self.http.get(self.http.base_url.join("/health"))).headers["date"]
        return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()

    def events(self, name: str) -> int:
        """How often this was logged."""
        return self.log.read_text().count(f'"event": "{name}"')


@dataclass
class Hand:
    """A worker played by hand, at Prefect itself. `ran`: how often the work of each task was done."""

    prefect: PrefectBench
    seconds: float = 0.0
    ran: Counter[str] = field(default_factory=Counter)

    async def work(self) -> None:
        """Run whatever is due, the most urgent first, until cancelled."""
        while True:
            for run_id in await self.prefect.due(5):
                await self._run(run_id)
            await asyncio.sleep(0.05)

    async def _run(self, run_id: str) -> None:
        claim = {"state": {"type": "PENDING", "message": protocol.claim_message("hand")}}
        answer = await self.prefect.http.post(f"/flow_runs/{run_id}/set_state", json=claim)
        if answer.status_code == 404 or answer.json()["status"] != "ACCEPT":
            return  # deleted or taken meanwhile
        run = await self.prefect.run(run_id)
        assert run is not None
        if (await self.prefect.set(run_id, "RUNNING"))["status"] == "ACCEPT":
            self.ran[protocol.task_of_run(run_id, run["idempotency_key"])[0]] += 1
            await asyncio.sleep(self.seconds)
            await self.prefect.report(run_id, result={"output": "done"})
            if (await self.prefect.set(run_id, "COMPLETED"))["status"] == "ACCEPT":
                return
        await self.prefect.set(run_id, "CANCELLED", force=True)


class FaultBench:
    """Makes API processes that reach the database and Prefect through `database` and `way` only."""

    def __init__(self, folder: Path, prefect: PrefectBench, own_database_url: str) -> None:
        self.folder, self.prefect, self._own_database_url = folder, prefect, own_database_url
        self.database: FaultProxy
        self.way: FaultProxy
        self._environment: dict[str, str] = {}
        self._count = 0

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[FaultBench]:
        """With its proxies open and a template that waits for nothing."""
        templates = self.folder / "templates"
        templates.mkdir(exist_ok=True)
        write_template(templates, self.prefect.template)
        async with AsyncExitStack() as stack:
            self.database, database_url = await stack.enter_async_context(fault_proxy_to(self._own_database_url))
            self.way, prefect_url = await stack.enter_async_context(fault_proxy_to(str(self.prefect.http.base_url)))
            self._environment = {
                **QUICK,
                "ORCHESTRA_HOME": str(self.folder),
                "ORCHESTRA_TEMPLATES_DIR": str(templates),
                "ORCHESTRA_WORK_POOL": self.prefect.pool,
                "ORCHESTRA_DATABASE_URL": database_url,
                "ORCHESTRA_API_KEY": KEY,
                "PREFECT_API_URL": prefect_url.rstrip("/"),
            }
            yield self

    @contextlib.asynccontextmanager
    async def api(self, *arguments: str, **variables: str) -> AsyncIterator[ApiProcess]:
        """An API process that serves; `variables` beside the usual ones. `arguments`: another way to start it."""
        port = servers.free_port()
        self._count += 1
        log = self.folder / f"api-{self._count}.log"
        environment = os.environ | self._environment | {"ORCHESTRA_PORT": str(port)} | variables
        argv = [sys.executable, "-m", *(arguments or ("api.serve",))]
        address = f"http://127.0.0.1:{port}"
        headers = {"X-API-Key": KEY}
        limits = httpx.Limits(max_connections=100)
        with servers.process(argv, env=environment, log=log, cwd=CHECKOUT) as process:
            async with httpx.AsyncClient(
                base_url=f"{address}/api/v1", headers=headers, timeout=60, limits=limits
            ) as http:
                try:
                    await wait_until(lambda: _answers(http, process), timeout=60, description="the API answers")
                    assert process.poll() is None
                    yield ApiProcess(process, http, self.prefect.template, log)
                except BaseException:
                    lines = [line for line in log.read_text().splitlines() if '"event": "request"' not in line]
                    print("\n".join(lines))  # what pytest shows of a failed test
                    raise
                finally:
                    await _stop(process)

    def heal(self) -> None:
        """No faults of the connections any more."""
        self.database.heal()
        self.way.heal()

    @contextlib.asynccontextmanager
    async def hand(self, seconds: float = 0.0) -> AsyncIterator[Hand]:
        """A worker played by hand that works meanwhile."""
        hand = Hand(self.prefect, seconds)
        work = asyncio.create_task(hand.work())
        try:
            yield hand
        finally:
            work.cancel()
            [ended] = await asyncio.gather(work, return_exceptions=True)
            if not isinstance(ended, asyncio.CancelledError):
                raise AssertionError("the worker played by hand has failed") from ended

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        """Ask the database itself, past the proxy."""
        connection = await asyncpg.connect(self._own_database_url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    async def task_of_mark(self, mark: str) -> str | None:
        """The id of the one task with this mark; None: there is none."""
        rows = await self.sql("SELECT id FROM task WHERE parameters #>> '{x,mark}' = $1", mark)
        assert len(rows) <= 1, f"{len(rows)} tasks for one request"
        return str(rows[0]["id"]) if rows else None

    async def nothing_is_live(self, ids: list[str]) -> None:
        """No flow run of these tasks is unfinished, once what had to go is gone."""

        async def none_live() -> bool:
            runs = [run for run in await self.prefect.all_runs() if run["tags"] and run["tags"][-1][5:] in ids]
            return all(run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for run in runs)

        await wait_until(none_live, timeout=30, description="no run of a finished task is left")


def new_mark() -> str:
    return f"mark-{uuid.uuid4().hex}"


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """Without blocking this loop: what it closes it closes through proxies that live here."""
    for number in (signal.SIGCONT, signal.SIGTERM):
        process.send_signal(number)
    with contextlib.suppress(AssertionError):  # then it is killed
        await wait_until(lambda: process.poll() is not None, timeout=20)


async def _answers(http: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        return True
    with contextlib.suppress(httpx.TransportError):
        return (await http.get(http.base_url.join("/health"))).status_code == 200
    return False
