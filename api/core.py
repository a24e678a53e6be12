"""The core of an API process: opens what it needs and keeps rows and flow runs in line in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.environment import prefect_client_environment
from api.adoption import Adoption
from api.batch_service import BatchService
from api.batch_store import BatchStore
from api.cancellation import Cancellation
from api.chores import Chores
from api.database import Sessions, dispose, open_engine, sessions_of
from api.dispatcher import Dispatcher
from api.gateway import PrefectGateway
from api.graphs import Graphs
from api.hints import Hints
from api.leader import Leader, regularly
from api.leases import Leases
from api.mirror import Mirror
from api.polling import Polling
from api.pools import Pools
from api.prefect_gateway import HttpPrefectGateway
from api.priorities import Priorities
from api.results import Results
from api.service import TaskService
from api.task_store import TaskStore
from api.wake import Wake

CHORES_SECONDS: Final = 1.0
GRAPHS_SECONDS: Final = 1.0
#: How many times a worker's heartbeat is looked at while its lease lasts.
LOOKS_PER_LEASE: Final = 6
#: Connections to our database: for requests (more in a burst), and for the background work.
REQUEST_CONNECTIONS: Final = 10
REQUEST_OVERFLOW: Final = 10
WORK_CONNECTIONS: Final = 12


@dataclass(frozen=True)
class Core:
    """What the REST API uses: tasks, batches, and sessions to our database for its keys."""

    service: TaskService
    batches: BatchService
    sessions: Sessions


@contextlib.asynccontextmanager
async def open_core(
    settings: Settings, library: TemplateLibrary, *, gateway: PrefectGateway | None = None
) -> AsyncIterator[Core]:
    """Open the core; neither Prefect nor the database need answer yet. `gateway`: another way to Prefect, for tests.

    1. pools of connections to our database; 2. Prefect's gateway; 3. the background work, led by one process.
    They close in the opposite order: the work uses both others.

    Raises:
        ConfigurationError: no database is set.
    """
    if settings.database_url is None:
        raise ConfigurationError("ORCHESTRA_DATABASE_URL is not set; `orchestra up` sets it for its own PostgreSQL")
    async with AsyncExitStack() as stack:
        # 1.
        pools = []
        for size, overflow in ((REQUEST_CONNECTIONS, REQUEST_OVERFLOW), (WORK_CONNECTIONS, 0)):
            engine = open_engine(settings.database_url, pool_size=size, max_overflow=overflow)
            stack.push_async_callback(dispose, engine)
            pools.append(sessions_of(engine))
        requests, work = pools
        # 2.
        if gateway is None:
            auth = prefect_client_environment(settings).get("PREFECT_API_AUTH_STRING")
            gateway = http = HttpPrefectGateway(settings.prefect_url, auth)
            stack.push_async_callback(http.aclose)
        # 3.
        wake, ours = Wake(), Pools(settings.work_pool, library)
        leader = Leader(
            settings.database_url,
            wake,
            partial(_work, settings, Parts.wire(settings, library, work, gateway, wake, ours)),
        )
        leading = asyncio.create_task(leader.run())
        stack.push_async_callback(_stop, leading)
        parts = Parts.wire(settings, library, requests, gateway, wake, ours)
        yield Core(parts.service, parts.batches, requests)


@dataclass(frozen=True)
class Parts:
    """The parts of a core, wired up on one pool of connections.

    Requests and background work have a pool each: a burst of requests must not keep tasks from being dispatched.
    """

    sessions: Sessions
    gateway: PrefectGateway
    wake: Wake
    pools: Pools
    mirror: Mirror
    cancellation: Cancellation
    priorities: Priorities
    results: Results
    graphs: Graphs
    service: TaskService
    batches: BatchService

    @classmethod
    def wire(
        cls,
        settings: Settings,
        library: TemplateLibrary,
        sessions: Sessions,
        gateway: PrefectGateway,
        wake: Wake,
        pools: Pools,
    ) -> Parts:
        mirror = Mirror(sessions, gateway, Adoption(sessions, gateway, library, pools), wake)
        cancellation = Cancellation(sessions, gateway, mirror, wake)
        priorities = Priorities(sessions, gateway, mirror, wake)
        store = TaskStore(sessions, wake, settings.prefect_ui_url)
        service = TaskService(settings, sessions, store, gateway, cancellation, priorities)
        stored_batches = BatchStore(sessions, wake, store)
        results = Results(settings, sessions, library, gateway)
        graphs = Graphs(settings, sessions, gateway, stored_batches)
        batches = BatchService(settings, stored_batches)
        return cls(sessions, gateway, wake, pools, mirror, cancellation, priorities, results, graphs, service, batches)


async def _work(settings: Settings, parts: Parts) -> None:
    """What the leading process does, until cancelled. Each lead starts with empty hands."""
    seen = (parts.sessions, parts.gateway, parts.mirror)
    polling = Polling(*seen, parts.pools)
    leases = Leases(*seen, parts.pools, settings.worker_lease_seconds)
    chores = Chores(parts.sessions, parts.gateway, parts.cancellation, parts.priorities)
    dispatcher = Dispatcher(settings, *seen, parts.cancellation, parts.results, parts.pools, parts.wake)
    lease_look_seconds = settings.worker_lease_seconds / LOOKS_PER_LEASE
    async with asyncio.TaskGroup() as group:
        group.create_task(Hints(parts.gateway, parts.mirror).run())
        group.create_task(regularly("full", settings.mirror_full_seconds, polling.full))
        group.create_task(regularly("active", settings.mirror_active_seconds, polling.active))
        group.create_task(regularly("unknown", settings.adopt_seconds, polling.unknown))
        group.create_task(regularly("leases", lease_look_seconds, leases.check))
        group.create_task(regularly("chores", CHORES_SECONDS, chores.do))
        group.create_task(regularly("graphs", GRAPHS_SECONDS, parts.graphs.show))
        group.create_task(dispatcher.run())


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
