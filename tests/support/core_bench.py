"""A core on a fresh database beside a real Prefect: what the core's tests look at."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from ai_task_orchestra.api_keys import key_hash
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.settings import Settings
from api.core import Core, open_core
from api.database import plain_url
from api.gateway import PrefectGateway
from api.identity import INTERNAL, Author, Limits
from api.keys import ApiKeyStore, NewKey
from api.service import NewTask, TaskView
from tests.support.waiting import wait_until

TENANT = "default"

TEMPLATE = """
name: {name}
description: {description}
parameters:
  - name: x
    type: object
    required: false
    description: Anything.
steps:
  - type: wait
    seconds: 0
{more}
"""


@dataclass
class CoreBench:
    """An open core with shortcuts for one tenant and one template."""

    core: Core
    library: TemplateLibrary
    prefect: Any
    settings: Settings

    @property
    def service(self) -> Any:
        return self.core.service

    def new(self, **fields: Any) -> NewTask:
        given: dict[str, Any] = {
            "template": self.library.get(fields.pop("template", self.prefect.template)),
            "parameters": {},
            "priority": 5,
            "depends_on": [],
            "on_dependency_failure": "cancel",
        }
        return NewTask(**given | fields)

    async def submit(self, *, by: Author = INTERNAL, **fields: Any) -> str:
        return (await self.core.service.submit(self.new(**fields), tenant=TENANT, by=by)).task.id

    async def holder(self, **limits: Any) -> Author:
        """The holder of a new stored key with these limits."""
        keys = ApiKeyStore(self.core.sessions)
        _, key = await keys.create(NewKey("holder", TENANT, limits=Limits(**limits)))
        identity = await keys.find(key_hash(key))
        assert identity is not None
        return Author(identity)

    async def get(self, task_id: str) -> TaskView:
        return await self.core.service.get(task_id, tenant=TENANT)

    async def cancel(self, task_id: str) -> None:
        await self.core.service.cancel(task_id, tenant=TENANT)

    async def prioritise(self, task_id: str, priority: int) -> TaskView:
        return await self.core.service.change_priority(task_id, priority, tenant=TENANT)

    async def status(self, task_id: str, wanted: str, timeout: float = 15) -> TaskView:
        """Wait until the task has this status."""

        async def look() -> Any:
            view = await self.get(task_id)
            return view if view.status == wanted else None

        return await wait_until(look, timeout=timeout, description=f"task {task_id} is {wanted}")

    async def run_of(self, task_id: str, *, other_than: str | None = None, state: str | None = None) -> str:
        """Wait until the task has a flow run (in this state), and return its id."""

        async def look() -> Any:
            run_id = (await self.get(task_id)).flow_run_id
            if run_id is None or run_id == other_than:
                return None
            run = await self.prefect.run(run_id)
            return run_id if run and state in (None, run["state_name"]) else None

        return await wait_until(look, description=f"task {task_id} has a flow run in state {state}")

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        assert self.settings.database_url
        connection = await asyncpg.connect(plain_url(self.settings.database_url))
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()


def write_template(folder: Path, name: str, *, description: str = "Waits.", **options: Any) -> None:
    more = "\n".join(f"{key}: {value}" for key, value in options.items())
    (folder / f"{name}.yaml").write_text(TEMPLATE.format(name=name, description=description, more=more))


def core_settings(folder: Path, database_url: str, prefect_url: str, pool: str, **overrides: Any) -> Settings:
    given: dict[str, Any] = {
        "home": folder,
        "templates_dir": folder,
        "database_url": database_url,
        "prefect_api_url": prefect_url,
        "work_pool": pool,
        "mirror_active_seconds": 0.5,
        "mirror_full_seconds": 2.0,
        "adopt_seconds": 1.0,
        "worker_lease_seconds": 3.0,
    }
    return Settings(_env_file=None, **given | overrides)


@contextlib.asynccontextmanager
async def open_bench(
    settings: Settings, prefect: Any, *, gateway: PrefectGateway | None = None
) -> AsyncIterator[CoreBench]:
    library = TemplateLibrary(settings.templates_dir)
    async with open_core(settings, library, gateway=gateway) as core:
        yield CoreBench(core, library, prefect, settings)
