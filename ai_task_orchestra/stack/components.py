"""The programs of a stack: how each is run, when it is ready, how it is stopped.

All `stop_seconds` together stay below the 15 s in which a stack must be gone.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import httpx

from ai_task_orchestra.errors import UnreachableError
from ai_task_orchestra.stack import environment
from ai_task_orchestra.stack.child import ChildSpec
from ai_task_orchestra.stack.environment import Wiring
from ai_task_orchestra.stack.http import plain_client, pool_path, prefect_client
from ai_task_orchestra.stack.postgres import EmbeddedPostgres

POSTGRESQL = "postgresql"
PREFECT = "prefect"
MIGRATION = "migration"
BOOTSTRAP = "bootstrap"
MODEL_FILE = "model-file"
MODEL = "model"
API = "api"
WORKER = "worker"

# The worker lets running tasks end for this long before it stops them: the 15 s are for everything together.
WORKER_GRACE_SECONDS = 5.0
# Without -P a folder `api` in the directory we are started from would be taken for ours.
PYTHON = (sys.executable, "-P")
CLI = (*PYTHON, "-m", "ai_task_orchestra.cli")


def postgresql(server: EmbeddedPostgres) -> ChildSpec:
    """PostgreSQL in the foreground. SIGINT is its fast shutdown, also when we are killed."""

    async def ready(started_at: float) -> bool:
        with contextlib.suppress(UnreachableError):
            await server.wait_ready(0)
            return True
        return False

    return ChildSpec(
        POSTGRESQL,
        server.argv,
        environment.postgres_environment(),
        ready=ready,
        user=server.user,
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGINT,
        stop_seconds=3.0,
        rank=0,
    )


def prefect_server(wiring: Wiring) -> ChildSpec:
    """Prefect's server with its UI; on loopback unless workers on other machines are to reach it."""
    settings = wiring.settings
    address = ["--host", settings.prefect_host, "--port", str(settings.prefect_port)]
    return ChildSpec(
        PREFECT,
        [*PYTHON, "-m", "prefect", "server", "start", *address],
        wiring.for_prefect_server(),
        cwd=wiring.settings.home,
        ready=_answers(f"{wiring.settings.prefect_url}/ready"),
        ready_seconds=120.0,
        stop_seconds=2.0,
        rank=1,
    )


def migration(wiring: Wiring) -> ChildSpec:
    """Brings our tables up to date, then ends."""
    return ChildSpec(
        MIGRATION, [*PYTHON, "-m", "api.migrate"], wiring.for_migration(), cwd=Path.cwd(), ready_seconds=120.0
    )


def bootstrap(wiring: Wiring) -> ChildSpec:
    """Registers work pool, queues and deployments as soon as Prefect answers, then ends."""
    return ChildSpec(BOOTSTRAP, [*CLI, "bootstrap"], wiring.for_bootstrap(), cwd=Path.cwd(), ready_seconds=180.0)


def model_file(wiring: Wiring) -> ChildSpec:
    """Fetches the small model if it is not there yet, then ends."""
    argv = [*PYTHON, "-m", "ai_task_orchestra.model_backend.fetch", "--json"]
    return ChildSpec(MODEL_FILE, argv, wiring.for_model_backend(), cwd=Path.cwd(), ready_seconds=1800.0)


def model_backend(wiring: Wiring, name: str, file: Path) -> ChildSpec:
    """The embedded server that speaks Ollama's protocol."""
    port = wiring.ollama_url.rpartition(":")[2]
    argv = [*PYTHON, "-m", "ai_task_orchestra.model_backend", "--port", port, "--model", f"{name}={file}"]
    return ChildSpec(
        MODEL,
        argv,
        wiring.for_model_backend(),
        cwd=Path.cwd(),
        ready=_answers(f"{wiring.ollama_url}/api/version"),
        stop_seconds=1.0,
        rank=1,
    )


def api(wiring: Wiring) -> ChildSpec:
    """The REST API."""
    return ChildSpec(
        API,
        [*CLI, "api"],
        wiring.for_api(),
        cwd=Path.cwd(),
        ready=_answers(f"{local_api_url(wiring)}/health"),
        ready_seconds=90.0,
        stop_seconds=2.0,
        rank=2,
    )


def worker(wiring: Wiring) -> ChildSpec:
    """The worker; ready when Prefect has its heartbeat."""
    grace = min(wiring.settings.worker_grace_seconds, WORKER_GRACE_SECONDS)
    return ChildSpec(
        WORKER,
        [*CLI, "worker", "--pool", wiring.settings.work_pool],
        wiring.for_worker() | {"ORCHESTRA_WORKER_GRACE_SECONDS": str(grace)},
        cwd=Path.cwd(),
        ready=_worker_beats(wiring),
        ready_seconds=120.0,
        stop_seconds=grace + 1.5,
        rank=3,
    )


def local_api_url(wiring: Wiring) -> str:
    """The API of this stack, whatever address `ORCHESTRA_URL` names."""
    return wiring.settings.model_copy(update={"url": None}).api_url


def _answers(url: str) -> Callable[[float], Awaitable[bool]]:
    async def ready(started_at: float) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            async with plain_client() as client:
                return (await client.get(url)).status_code == 200
        return False

    return ready


def _worker_beats(wiring: Wiring) -> Callable[[float], Awaitable[bool]]:
    """Whether Prefect has heard of a worker of the pool since the start."""
    settings = wiring.settings

    async def ready(started_at: float) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            async with prefect_client(settings, wiring.prefect_auth) as client:
                answer = await client.post(f"{pool_path(settings.work_pool)}/workers/filter", json={})
            if answer.status_code == 200:
                beats = [worker["last_heartbeat_time"] for worker in answer.json()]
                return any(beat and datetime.fromisoformat(beat).timestamp() >= started_at for beat in beats)
        return False

    return ready
