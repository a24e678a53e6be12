"""The core of an API process: opens what it needs and keeps rows and flow runs in line in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.settings import Settings
from api.adoption import Adoption
from api.cancellation import Cancellation
from api.chores import Chores
from api.database import open_engine, sessions_of
from api.dispatcher import Dispatcher
from api.gateway import PrefectGateway
from api.hints import Hints
from api.leader import Leader, regularly
from api.leases import Leases
from api.mirror import Mirror
from api.polling import Polling
from api.pools import Pools
from api.prefect_gateway import HttpPrefectGateway
from api.priorities import Priorities
from api.service import TaskService
from api.task_store import TaskStore
from api.wake import Wake

CHORES_SECONDS: Final = 1.0
LEASES_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Core:
    """What the REST API uses: the tasks, and sessions to our database for its keys."""

    service: TaskService
    sessions: async_sessionmaker[AsyncSession]


@contextlib.asynccontextmanager
async def open_core(
    settings: Settings, library: TemplateLibrary, *, gateway: PrefectGateway | None = None
) -> AsyncIterator[Core]:
    """Open the core; neither Prefect nor the database need answer yet. `gateway`: another way to Prefect, for tests.

    1. the pool of connections to our database; 2. Prefect's gateway; 3. the background work, led by one process.
    They close in the opposite order: the work uses both others.

    Raises:
        ConfigurationError: no database is set.
    """
    if settings.database_url is None:
        raise ConfigurationError("ORCHESTRA_DATABASE_URL is not set; `orchestra up` sets it for its own PostgreSQL")
    async with AsyncExitStack() as stack:
        # 1.
        engine = open_engine(settings.database_url)
        stack.push_async_callback(engine.dispose)
        sessions = sessions_of(engine)
        # 2.
        if gateway is None:
            gateway = http = HttpPrefectGateway(settings.prefect_url, settings.prefect_auth_string)
            stack.push_async_callback(http.aclose)
        # 3.
        background = Background(settings, library, sessions, gateway)
        leading = asyncio.create_task(Leader(settings.database_url, background.wake, background.work).run())
        stack.push_async_callback(_stop, leading)
        yield Core(background.service, sessions)


class Background:
    """Everything that keeps rows and flow runs in line, wired up."""

    def __init__(
        self,
        settings: Settings,
        library: TemplateLibrary,
        sessions: async_sessionmaker[AsyncSession],
        gateway: PrefectGateway,
    ) -> None:
        self.wake = Wake()
        self._settings, self._sessions, self._gateway = settings, sessions, gateway
        self._pools = Pools(settings.work_pool, library)
        adoption = Adoption(sessions, gateway, library, self._pools)
        self._mirror = Mirror(sessions, gateway, adoption, self.wake)
        self._cancellation = Cancellation(sessions, gateway, self._mirror, self.wake)
        self._priorities = Priorities(sessions, gateway, self._mirror, self.wake)
        store = TaskStore(sessions, self.wake, settings.prefect_ui_url)
        self.service = TaskService(settings, sessions, store, gateway, self._cancellation, self._priorities)

    async def work(self) -> None:
        """What the leading process does, until cancelled. Each lead starts with empty hands."""
        settings, wake = self._settings, self.wake
        seen = (self._sessions, self._gateway, self._mirror)
        polling = Polling(*seen, self._pools)
        leases = Leases(*seen, self._pools, settings.worker_lease_seconds)
        chores = Chores(self._sessions, self._gateway, self._cancellation, self._priorities)
        dispatcher = Dispatcher(
            settings, self._sessions, self._gateway, self._mirror, self._cancellation, self._pools, wake
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(Hints(self._gateway, self._mirror).run())
            group.create_task(regularly("full", settings.mirror_full_seconds, polling.full))
            group.create_task(regularly("active", settings.mirror_active_seconds, polling.active))
            group.create_task(regularly("unknown", settings.adopt_seconds, polling.unknown))
            group.create_task(regularly("leases", LEASES_SECONDS, leases.check))
            group.create_task(regularly("chores", CHORES_SECONDS, chores.do))
            group.create_task(dispatcher.run())


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
