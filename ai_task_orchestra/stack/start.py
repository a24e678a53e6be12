"""The start of a stack: what depends on what, and what can be done at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack import components, databases, home, model, postgres
from ai_task_orchestra.stack.child import StartError
from ai_task_orchestra.stack.environment import Wiring
from ai_task_orchestra.stack.http import plain_client
from ai_task_orchestra.stack.leftovers import end_former_server
from ai_task_orchestra.stack.model import ModelServer
from ai_task_orchestra.stack.model_fetch import fetch
from ai_task_orchestra.stack.ports import own_port
from ai_task_orchestra.stack.report import StartReport
from ai_task_orchestra.stack.supervisor import Supervisor

READY_SECONDS = 60.0


@dataclass(frozen=True)
class RunningStack:
    """A stack that is ready. `model` is None when tasks that need one will fail."""

    settings: Settings
    wiring: Wiring
    key_file: Path
    model: ModelServer | None
    started_in_seconds: float

    @property
    def api_url(self) -> str:
        """The REST API's address, without the `/api/v1`."""
        return components.local_api_url(self.wiring)


class StackStart:
    """The start of one stack. 1. databases; then at once 2. Prefect, 3. model, 4. migrations, API, bootstrap, worker.

    Prefect's server takes the longest. Bootstrap and worker start beside it: they load their code and wait for it.
    """

    def __init__(self, settings: Settings, report: StartReport, supervisor: Supervisor, place: home.LockedHome) -> None:
        self.settings, self.report, self.supervisor, self.place = settings, report, supervisor, place

    async def run(self) -> RunningStack:
        """All of it.

        Raises:
            OrchestraError: or a group of them.
        """
        settings, begun = self.settings, time.monotonic()
        key_file = home.ensure_api_key(settings)
        own_prefect = settings.prefect_api_url is None
        auth = home.ensure_prefect_auth(settings) if own_prefect else settings.prefect_auth_string
        chosen = asyncio.create_task(self._choose_model_server())
        try:
            database_url, prefect_database_url = await self._databases(own_prefect)
            server = await chosen
        finally:
            chosen.cancel()
        wiring = Wiring(
            settings, database_url, prefect_database_url, auth, server.url if server else settings.ollama_url
        )
        async with asyncio.TaskGroup() as group:
            if own_prefect:
                group.create_task(self._prefect(wiring))
            ready_model = group.create_task(self._model(wiring, server))
            group.create_task(self._api_and_worker(wiring))
        await self._whole(wiring)
        return RunningStack(settings, wiring, key_file, ready_model.result(), time.monotonic() - begun)

    # 1.
    async def _databases(self, own_prefect: bool) -> tuple[str, str | None]:
        """Addresses of our database and of Prefect's (None: its server is not ours)."""
        self.report.begin("PostgreSQL")
        ours = self.settings.database_url
        if ours is None:
            ours = (await self._embedded_postgres()).url("orchestra")
            home.write_private(self.place.database_url_file, f"{ours}\n")
        else:
            await databases.ensure_database(ours)
        prefects = self.settings.prefect_database_url or databases.on_same_server(ours, databases.PREFECT_DATABASE)
        if own_prefect:
            await databases.ensure_database(prefects, extension="pg_trgm")
        self.report.done("PostgreSQL", databases.shown_url(ours))
        return ours, databases.sqlalchemy_url(prefects) if own_prefect else None

    async def _embedded_postgres(self) -> postgres.EmbeddedPostgres:
        server = await asyncio.to_thread(postgres.prepare, self.settings.home, own_port())
        await end_former_server(server.data)
        await self.supervisor.start(components.postgresql(server))
        await server.create_databases()
        return server

    # 2.
    async def _prefect(self, wiring: Wiring) -> None:
        self.report.begin("Prefect")
        await self.supervisor.start(components.prefect_server(wiring))
        self.report.done("Prefect", self.settings.prefect_ui_url)

    # 3.
    async def _choose_model_server(self) -> ModelServer | None:
        """The server that answers, else where ours will be; None when ours can't be used."""
        found = await model.find_ollama(self.settings.ollama_url)
        if found is not None:
            return found
        if problem := model.engine_problem():
            self.report.absent(
                "model", f"no Ollama at {self.settings.ollama_url}, and {problem}: tasks that need a model will fail"
            )
            return None
        return ModelServer(f"http://127.0.0.1:{own_port()}", embedded=True, models=(model.EMBEDDED_MODEL,))

    async def _model(self, wiring: Wiring, server: ModelServer | None) -> ModelServer | None:
        if server is None:
            return None
        self.report.begin("model")
        if not server.embedded:
            self.report.done("model", f"Ollama at {server.url}, {len(server.models)} models")
            return server
        try:
            show = partial(self.report.update, "model")
            file = await fetch(self.supervisor, components.model_file(wiring), show)
            show(f"loading {model.EMBEDDED_MODEL}")
            await self.supervisor.start(components.model_backend(wiring, model.EMBEDDED_MODEL, file))
        except StartError as exc:
            await self.supervisor.drop(components.MODEL)
            self.report.absent("model", f"no model backend, tasks that need one will fail: {exc.message}")
            return None
        self.report.done("model", f"{model.EMBEDDED_MODEL} at {server.url} (no Ollama at {self.settings.ollama_url})")
        return server

    # 4.
    async def _api_and_worker(self, wiring: Wiring) -> None:
        self.report.begin("deployments")
        registered = asyncio.create_task(self.supervisor.run(components.bootstrap(wiring)))
        try:
            self.report.begin("API", "bringing the tables up to date")
            await self.supervisor.run(components.migration(wiring))
            self.report.update("API", "starting")
            async with asyncio.TaskGroup() as group:
                group.create_task(self._api(wiring))
                group.create_task(self._worker(wiring))
                await registered
                self.report.done("deployments", f"one for each template in {self.settings.templates_dir}")
        finally:
            registered.cancel()

    async def _api(self, wiring: Wiring) -> None:
        await self.supervisor.start(components.api(wiring))
        self.report.done("API", components.local_api_url(wiring))

    async def _worker(self, wiring: Wiring) -> None:
        self.report.begin("worker")
        await self.supervisor.start(components.worker(wiring))
        self.report.done("worker", f"pool {self.settings.work_pool}, {self.settings.worker_limit} tasks at once")

    async def _whole(self, wiring: Wiring) -> None:
        """Wait until the API finds everything it needs.

        Raises:
            StartError: it does not within 60 s; the message has its own words.
        """
        url = f"{components.local_api_url(wiring)}/ready"
        deadline = time.monotonic() + READY_SECONDS
        async with plain_client() as client:
            while True:
                said = "no answer"
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get(url)
                    if answer.status_code == 200:
                        return
                    said = answer.text[:500]
                if time.monotonic() > deadline:
                    raise StartError(f"the API is not ready: {said}")
                await asyncio.sleep(0.1)
