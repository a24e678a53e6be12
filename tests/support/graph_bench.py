"""Batches over the REST API, on the real core and PostgreSQL, with Prefect's double and a worker played by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from ai_task_orchestra.settings import Settings
from api.core import open_core
from api.database import plain_url
from api.main import create_app
from api.migrate import upgrade
from tests.support.api_app import KEY
from tests.support.core_bench import core_settings
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until

TEMPLATE = """
name: {name}
description: Anything goes in and comes out.
parameters:
  - {{name: text, type: string, required: false, description: A text}}
  - {{name: count, type: integer, required: false, minimum: 1, description: A count}}
  - {{name: items, type: array, required: false, description: Some things}}
  - {{name: options, type: object, required: false, description: Named things}}
steps:
  - type: wait
    seconds: 0
"""

Deed = Callable[[dict[str, Any]], Any]


@dataclass
class GraphBench:
    """`ran` has the parameters of each run that the worker has begun, in order; `deeds` what comes of them by name.

    A deed is called with the parameters; it returns the result, or raises to fail the task.
    """

    client: httpx.AsyncClient
    prefect: PrefectDouble
    settings: Settings
    ran: list[dict[str, Any]] = field(default_factory=list)

    async def batch(self, *tasks: dict[str, Any]) -> dict[str, str]:
        """Post a batch; its tasks' ids by name, and its own under ''."""
        listed = [{"template": self.prefect.template, "parameters": {}} | task for task in tasks]
        answer = await self.client.post("/tasks/batch", json={"tasks": listed})
        assert answer.status_code == 201, answer.text
        return answer.json()["tasks"] | {"": answer.json()["id"]}

    async def task(self, **fields: Any) -> str:
        body = {"template": self.prefect.template, "parameters": {}} | fields
        answer = await self.client.post("/tasks", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def get(self, task_id: str) -> dict[str, Any]:
        return dict((await self.client.get(f"/tasks/{task_id}")).json())

    async def status(self, task_id: str, wanted: str) -> dict[str, Any]:
        """Wait until the task has this status."""

        async def look() -> Any:
            found = await self.get(task_id)
            return found if found["status"] == wanted else None

        return await wait_until(look, timeout=40, description=f"task {task_id} is {wanted}")

    async def run_of(self, task_id: str, state: str, *, other_than: str | None = None) -> dict[str, Any]:
        """Wait until the task has a flow run in this state."""

        async def look() -> Any:
            run_id = (await self.get(task_id)).get("flow_run_id")
            run = await self.prefect.run(run_id) if run_id and run_id != other_than else None
            return run if run and run["state_name"] == state else None

        return await wait_until(look, timeout=40, description=f"task {task_id} has a flow run in state {state}")

    async def complete(self, task_id: str, result: Any) -> None:
        """Let a worker run the task, to this result."""
        run = await self.run_of(task_id, "Queued")
        await self.prefect.start(run["id"])
        self.ran.append(run["parameters"])
        await self.prefect.complete(run["id"], result)
        await self.status(task_id, "completed")

    async def fail(self, task_id: str) -> None:
        run = await self.run_of(task_id, "Queued")
        await self.prefect.start(run["id"])
        await self.prefect.fail(run["id"])
        await self.status(task_id, "failed")

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        assert self.settings.database_url
        connection = await asyncpg.connect(plain_url(self.settings.database_url))
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def worker(self, deed: Deed) -> AsyncIterator[None]:
        """A worker that runs whatever is due: `deed` makes a result of the parameters, or raises."""

        async def work() -> None:
            while True:
                for run_id in await self.prefect.due():
                    parameters = self.prefect.known[UUID(run_id)].parameters
                    await self.prefect.start(run_id)
                    self.ran.append(parameters)
                    try:
                        await self.prefect.complete(run_id, deed(parameters))
                    except ZeroDivisionError:
                        await self.prefect.fail(run_id)
                await asyncio.sleep(0.005)

        working = asyncio.create_task(work())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


@contextlib.asynccontextmanager
async def open_graph_bench(
    folder: Path, database_url: str, prefect: PrefectDouble, **overrides: Any
) -> AsyncIterator[GraphBench]:
    """An API on a migrated database."""
    await upgrade(database_url)
    (folder / "work.yaml").write_text(TEMPLATE.format(name=prefect.template))
    (folder / "retried.yaml").write_text(TEMPLATE.format(name="retried") + "retries: 2\nretry_delay_seconds: 0\n")
    prefect.deploy_now("retried")
    settings = core_settings(folder, database_url, "http://127.0.0.1:9/api", prefect.pool, api_key=KEY, **overrides)
    app = create_app(settings, core_factory=partial(open_core, gateway=prefect))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    url, headers = "http://api.test/api/v1", {"X-API-Key": KEY}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=url, headers=headers, timeout=30) as client,
    ):
        yield GraphBench(client, prefect, settings)
