"""Real parts together: templates deployed into a pool of their own, real workers, and the API's core beside them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from prefect.client.orchestration import PrefectClient

from ai_task_orchestra import protocol
from ai_task_orchestra.settings import Settings
from api.migrate import upgrade
from api.service import TaskView
from deployments.bootstrap import bootstrap
from tests.support.core_bench import CoreBench, core_settings, open_bench
from tests.support.prefect_bench import PrefectBench
from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench, WorkerProcess

#: Long enough for machines with other work; heartbeats come four times as often.
LEASE_SECONDS: Final = 6.0

_OPTIONAL: Final = "required: false, description: Optional"
#: Each has one step that may go on for ever, and an optional time limit for it.
_TEMPLATES: Final = {
    "program": """
parameters:
  - {name: command, type: array, required: true, description: Program and arguments}
  - {name: path, type: string, OPTIONAL}
  - {name: limit, type: number, OPTIONAL}
steps:
  - {type: run_command, name: work, command: "{{ command }}", timeout_seconds: "{{ limit }}"}
  - {type: store_result, when: "{{ path }}", path: "{{ path }}"}
""",
    "retried": """
parameters:
  - {name: command, type: array, required: true, description: Program and arguments}
steps:
  - {type: run_command, name: work, command: "{{ command }}", retries: 1, retry_delay_seconds: 30}
""",
    "later": """
parameters:
  - {name: command, type: array, required: true, description: Program and arguments}
steps:
  - {type: run_command, name: work, command: "{{ command }}", retries: 1, retry_delay_seconds: 60}
""",
    "wait": """
parameters:
  - {name: limit, type: number, OPTIONAL}
steps:
  - {type: wait, name: work, seconds: 600, timeout_seconds: "{{ limit }}"}
""",
    "clone": """
parameters:
  - {name: url, type: string, required: true, description: Repository}
  - {name: limit, type: number, OPTIONAL}
steps:
  - {type: git_clone, name: work, repo: "{{ url }}", timeout_seconds: "{{ limit }}"}
""",
    "request": """
parameters:
  - {name: url, type: string, required: true, description: Address}
  - {name: limit, type: number, OPTIONAL}
steps:
  - {type: http_request, name: work, url: "{{ url }}", timeout_seconds: "{{ limit }}"}
""",
    "generate": """
parameters:
  - {name: limit, type: number, OPTIONAL}
steps:
  - {type: ollama_generate, name: work, model: slow, prompt: Count., timeout_seconds: "{{ limit }}"}
""",
}


@dataclass(frozen=True)
class Site:
    """Templates, deployed under names of their own, and the pool that their workers serve."""

    folder: Path
    prefect_url: str
    pool: str
    #: Distinguishes the templates' names from those of other sites on the same Prefect.
    mark: str

    def template(self, kind: str) -> str:
        return f"{kind}-{self.mark}"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def outputs(self) -> Path:
        return self.home / "outputs"

    def worker(self, name: str, **settings: Any) -> contextlib.AbstractContextManager[WorkerProcess]:
        """A worker process of this name."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        bench = WorkerBench(PrefectClient(self.prefect_url), self.prefect_url, folder, self.pool)
        given: dict[str, Any] = {
            "home": self.home,
            "templates_dir": self.folder / "templates",
            "catalog_module": protocol.CATALOG_MODULE,
            "worker_name": name,
            "worker_lease_seconds": LEASE_SECONDS,
            "git_protocols": "http",
            "http_allow_private": True,
            "log_level": "DEBUG",
        }
        return bench.worker(**given | settings)

    @contextlib.asynccontextmanager
    async def core(self, database_url: str, **overrides: Any) -> AsyncIterator[CoreBench]:
        """The API's core on an empty database."""
        await upgrade(database_url)
        given = {"templates_dir": self.folder / "templates", "worker_lease_seconds": LEASE_SECONDS}
        settings = core_settings(self.home, database_url, self.prefect_url, self.pool, **given | overrides)
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=self.prefect_url, timeout=20))
            prefect = PrefectBench(http, self.pool, self.template("wait"), "")
            yield await stack.enter_async_context(open_bench(settings, prefect))


def open_site(folder: Path, prefect_url: str, *kinds: str) -> Site:
    """A site with these templates (all, if none is named)."""
    mark = uuid.uuid4().hex[:8]
    site = Site(folder, prefect_url, f"pool-{mark}", mark)
    templates = folder / "templates"
    templates.mkdir()
    for kind in kinds or _TEMPLATES:
        head = f"name: {site.template(kind)}\ndescription: A test's\n"
        (templates / f"{kind}.yaml").write_text(head + _TEMPLATES[kind].replace("OPTIONAL", _OPTIONAL))
    settings = Settings(
        _env_file=None, home=site.home, templates_dir=templates, prefect_api_url=prefect_url, work_pool=site.pool
    )
    asyncio.run(bootstrap(settings))
    return site


class Crew:
    """Workers of a site that are killed now and then: there are always as many living ones as a test needs."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self._site, self._stack = site, stack
        self._all: dict[str, WorkerProcess] = {}

    async def ready(self, count: int) -> dict[str, WorkerProcess]:
        """So many living workers, by name, each with a parked child for its one slot and one to spare."""
        living = {name: worker for name, worker in self._all.items() if worker.process.poll() is None}
        for _ in range(count - len(living)):
            name = f"worker-{len(self._all) + 1}"
            worker = self._site.worker(name, worker_limit=1, worker_grace_seconds=1)
            self._all[name] = living[name] = self._stack.enter_context(worker)
        for worker in living.values():
            await worker.parked(2)
        return living


@contextlib.contextmanager
def open_crew(site: Site) -> Iterator[Crew]:
    with ExitStack() as stack:
        yield Crew(site, stack)


class SilentServer:
    """Accepts connections and never answers: what hangs, and whether it has been let go of."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/x.git"
        self._caller: socket.socket | None = None

    def has_a_caller(self) -> bool:
        if self._caller is None:
            with contextlib.suppress(BlockingIOError):
                self._caller, _ = self._listening.accept()
                self._caller.setblocking(False)
        return self._caller is not None

    def was_left(self) -> bool:
        """Whether the caller has closed its connection."""
        assert self._caller is not None
        try:
            while self._caller.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        for each in (self._listening, self._caller):
            if each is not None:
                each.close()


async def holder(bench: CoreBench, task_id: str) -> str:
    """The name of the worker that has the task, once it is known."""

    async def known() -> str | None:
        [row] = await bench.sql("SELECT worker FROM task WHERE id = $1::uuid", task_id)
        found: str | None = row["worker"]
        return found

    return await wait_until(known, timeout=100, description=f"task {task_id} is with a worker")


def attempts(view: TaskView) -> list[tuple[str | None, str | None]]:
    """(worker, outcome) of each."""
    return [(attempt.worker, attempt.outcome) for attempt in view.attempts]


def python(code: str) -> list[str]:
    """A command that runs this code."""
    return [sys.executable, "-c", code]
