"""The worker type `orchestra`: a Prefect worker that starts a run in milliseconds instead of seconds."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import httpx
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED, get_current_settings, temporary_settings
from prefect.types._datetime import now
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

from ai_task_orchestra import lease, protocol, workspaces
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.settings import Settings, load_settings
from ai_task_orchestra.worker.cancellation import CancelWatch
from ai_task_orchestra.worker.child_pool import ChildPool
from ai_task_orchestra.worker.claims import ClaimLoop
from ai_task_orchestra.worker.execution import Execution, Surroundings
from ai_task_orchestra.worker.heartbeat import Heartbeat, LeaseKeeper
from ai_task_orchestra.worker.outbox import Outbox
from ai_task_orchestra.worker.patient_client import PatientClient, shared_by_prefect, unused_ssl_context
from ai_task_orchestra.worker.prefect_gateway import Candidate, PrefectGateway
from ai_task_orchestra.worker.reach import is_reachable
from ai_task_orchestra.worker.stop_signals import StopSignals
from ai_task_orchestra.worker.template_folder import TemplateFolder
from ai_task_orchestra.worker.wake import EventSubscription

if TYPE_CHECKING:
    import anyio.abc
    from prefect.client.schemas.objects import FlowRun

_log = logging.getLogger(__name__)

# One more child than slots is parked, so that no run waits for a fork; more than this only cost memory.
_MOST_PARKED: Final = 4
# How long states are set, and an unanswered claim is waited for, once the worker is to end.
_LAST_WORDS_SECONDS: Final = 5.0


_NOT_FOR_CHILDREN: Final = frozenset(
    {
        "ORCHESTRA_API_KEY",
        "ORCHESTRA_DATABASE_URL",
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_API_AUTH_STRING",
    }
)


class OrchestraJobConfiguration(BaseJobConfiguration):
    """Runs start in processes that exist already: there is nothing to configure per run."""


class OrchestraWorkerResult(BaseWorkerResult):
    """How a run that was given to `OrchestraWorker.run` ended."""


class OrchestraWorker(BaseWorker[OrchestraJobConfiguration, BaseVariables, OrchestraWorkerResult]):
    """Claims runs of one work pool and executes each in a parked, pre-forked child.

    It owns its process: it handles SIGTERM and SIGINT, and kills what its children leave behind. It always starts what
    is due now (no prefetch) and beats its heart every `ORCHESTRA_WORKER_HEARTBEAT_SECONDS`, whatever a stock command
    line says of both; `--limit` wins over `ORCHESTRA_WORKER_LIMIT`.
    """

    type = protocol.WORKER_TYPE
    job_configuration = OrchestraJobConfiguration
    _description = "Starts runs in milliseconds, in processes that have everything imported."
    _display_name = "AI Task Orchestra"

    def __init__(
        self, work_pool_name: str, *, name: str | None = None, settings: Settings | None = None, **options: Any
    ) -> None:
        """`options`: what else a Prefect worker takes. Without `settings` they are read from the environment."""
        self._settings = settings or load_settings()
        name = name or self._settings.worker_name or f"{socket.gethostname()}-{os.getpid()}"
        super().__init__(work_pool_name, name=name, **options)
        self.slots = self._limit or self._settings.worker_limit
        self._around: Surroundings | None = None
        self._lease = lease.Lease(self._settings.worker_lease_seconds)

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """A pool of this type has no job variables."""
        return {"job_configuration": {}, "variables": {"type": "object", "properties": {}}}

    async def sync_with_backend(self) -> None:
        """Look at the work pool, make it if need be, and beat once.

        Raises:
            httpx.HTTPError: Prefect is unreachable.
        """
        try:
            pool = await self.client.read_work_pool(self._work_pool_name)
        except ObjectNotFound:
            if not self._create_pool_if_not_found:
                _log.warning("worker.work_pool_missing", extra={"work_pool": self._work_pool_name})
                return
            template = self._base_job_template or self.get_default_base_job_template()
            try:
                pool = await self.client.create_work_pool(
                    WorkPoolCreate(name=self._work_pool_name, type=self.type, base_job_template=template)
                )
            except ObjectAlreadyExists:
                pool = await self.client.read_work_pool(self._work_pool_name)
        if pool.type != self.type:
            _log.warning("worker.work_pool_type", extra={"work_pool": pool.name, "type": pool.type})
        self._work_pool = pool
        await self.client.send_worker_heartbeat(
            pool.name, self.name, max(1, round(self._settings.worker_heartbeat_seconds))
        )

    async def run(
        self,
        flow_run: FlowRun,
        configuration: OrchestraJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> OrchestraWorkerResult:
        """Execute a run that is claimed already. `start` does not come here: it claims and executes by itself.

        Raises:
            RuntimeError: the worker is not started.
        """
        if self._around is None:
            raise RuntimeError("the worker is not started")
        execution = Execution(Candidate.of(flow_run.model_dump(mode="json")), self._around)
        if task_status:
            task_status.started(os.getpid())
        await execution.execute(lambda: None)
        return OrchestraWorkerResult(status_code=0, identifier=str(flow_run.id))

    async def start(
        self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
    ) -> None:
        """Serve the work pool until SIGTERM or SIGINT; with `run_once`, only what is due now.

        `with_healthcheck` is done by Prefect's command line.
        """
        async with AsyncExitStack() as stack:
            # Closed in the reverse order: the children before the client, the signals last.
            stop = stack.enter_context(StopSignals())
            stack.enter_context(temporary_settings({PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}))
            client = PatientClient(0.0, ssl_context=unused_ssl_context())
            await stack.enter_async_context(shared_by_prefect(client))
            await stack.enter_async_context(self)
            gateway = PrefectGateway(client, pool=self._work_pool_name, queues=self._work_queues, worker=self.name)
            csrf = await stop.first_of(gateway.insist(self._reach_prefect), stop.requested)
            if csrf is None:  # stopped before Prefect could be reached
                return
            await stop.first_of(self._replace_predecessor(gateway), stop.requested)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestra-worker-")))
            outbox = Outbox(client)
            folder = TemplateFolder(TemplateLibrary(self._settings.templates_dir))
            pool = ChildPool(
                self._settings.catalog_module,
                self._child_environment(csrf),
                parked=min(self.slots + 1, _MOST_PARKED),
                folder=folder,
                on_ready=lambda: claims.nudge(),
                on_relay=outbox.take,
            )
            around = self._around = Surroundings(
                gateway,
                pool,
                self._settings.catalog_module,
                scratch,
                self._settings.workspaces,
                self._lease,
                self.name,
            )
            claims = ClaimLoop(
                gateway,
                pool,
                lambda run: Execution(run, around),
                limit=self.slots,
                poll_seconds=self._settings.worker_poll_seconds,
                on_poll=self._polled,
                may_claim=lambda: self._lease.held,
            )
            await stack.enter_async_context(outbox.running(_LAST_WORDS_SECONDS))
            await stack.enter_async_context(pool)
            printer(f"Worker {self.name!r} started!")
            await self._serve(claims, gateway, stop, run_once=run_once)
        printer(f"Worker {self.name!r} stopped!")

    async def _serve(self, claims: ClaimLoop, gateway: PrefectGateway, stop: StopSignals, *, run_once: bool) -> None:
        """Claim until asked to stop, then let the runs finish; everything else goes on until they have."""
        cancels = CancelWatch(gateway, claims.executions)
        keeper = LeaseKeeper(self._lease, claims.executions)
        heartbeat = Heartbeat(
            gateway,
            keeper,
            seconds=self._settings.worker_heartbeat_seconds,
            lease_seconds=self._settings.worker_lease_seconds,
            sync=self.sync_with_backend,
            reach=partial(is_reachable, self._settings.prefect_url),
        )
        events = EventSubscription(
            self._work_pool_id, on_due=claims.announce, on_cancel=cancels.noticed, on_connected=claims.look_again
        )
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(heartbeat.run()),
                group.create_task(keeper.run()),
                group.create_task(asyncio.to_thread(workspaces.sweep, self._settings.workspaces)),
                group.create_task(cancels.run()),
                group.create_task(events.run()),
            ]
            claiming = group.create_task(claims.run(once=run_once))
            waiting = asyncio.ensure_future(stop.requested.wait())
            await asyncio.wait({claiming, waiting}, return_when=asyncio.FIRST_COMPLETED)
            claims.stop()
            await asyncio.wait({claiming}, timeout=_LAST_WORDS_SECONDS)
            claiming.cancel()
            if stop.requested.is_set():
                for execution in claims.executions.values():
                    execution.end_unless_begun()
            if not stop.requested.is_set():  # run_once: as long as it takes, unless asked to stop meanwhile
                await stop.first_of(claims.drained(None), stop.requested)
            await stop.first_of(claims.drained(self._settings.worker_grace_seconds), stop.now)
            for execution in list(claims.executions.values()):
                execution.end("worker stopped")
            if not await claims.drained(_LAST_WORDS_SECONDS):
                _log.warning("worker.runs_left_unsettled", extra={"count": len(claims.executions)})
            waiting.cancel()
            for task in background:
                task.cancel()

    async def _reach_prefect(self) -> bool:
        """Synchronise with the pool, for the first time; whether Prefect wants CSRF tokens (or requests can be saved).

        Raises:
            httpx.HTTPError: Prefect is unreachable.
        """
        asked = lease.now()
        await self.sync_with_backend()
        self._lease.renew(asked)
        try:
            await self.client.request("GET", "/csrf-token", params={"client": str(uuid4())})
        except httpx.HTTPStatusError as exc:
            if exc.response.status_code not in (404, 422):
                raise
            return False
        return True

    async def _replace_predecessor(self, gateway: PrefectGateway) -> None:
        """One name, one worker: runs that an earlier worker of our name has left are lost, and nobody else can tell.

        The heartbeat by which the API would notice is ours from now on.
        """
        for run_id in await gateway.insist(gateway.left_behind):
            await gateway.crashed(run_id, f"The worker {self.name} was lost; another one of its name has started.")

    def _child_environment(self, csrf: bool) -> dict[str, str]:
        """Our environment, and what was configured otherwise; without the keys that only other processes need."""
        environment = {
            "DO_NOT_TRACK": "1",
            **os.environ,
            **get_current_settings().to_environment_variables(exclude_unset=True),
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": str(csrf),
            "PREFECT__WORKER_NAME": self.name,
            "ORCHESTRA_WORKER_NAME": self.name,
            "ORCHESTRA_HOME": str(self._settings.home.absolute()),
            "ORCHESTRA_TEMPLATES_DIR": str(self._settings.templates_dir.absolute()),
        }
        return {name: value for name, value in environment.items() if name not in _NOT_FOR_CHILDREN}

    def _work_pool_id(self) -> UUID:
        return self.work_pool.id

    def _polled(self) -> None:
        self._last_polled_time = now("UTC")  # what Prefect's health check looks at
