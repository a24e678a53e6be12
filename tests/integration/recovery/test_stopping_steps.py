"""Every kind of step that can take long is ended by a cancel and by its time limit, and nothing of it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import servers
from tests.support.core_bench import CoreBench
from tests.support.site import SilentServer, Site, python
from tests.support.waiting import wait_until, wait_until_sync
from tests.support.worker_bench import WorkerProcess, alive

# A program with a child, a session and a daemon, all of which ignore SIGTERM; they write their pids to a file.
_STUBBORN = """
import os, signal, subprocess, sys, time
code = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[2] == "daemon":
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
with open(sys.argv[1], "a") as out: out.write(f"{os.getpid()} ")
time.sleep(600)
'''
for kind in ("child", "session", "daemon"):
    subprocess.Popen([sys.executable, "-S", "-c", code, PATH, kind], start_new_session=kind == "session")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(PATH, "a") as out: out.write(f"{os.getpid()} ")
time.sleep(600)
"""


@dataclass
class Going:
    """A step in the middle of its work: its task's parameters, when it has begun, and when nothing of it goes on."""

    parameters: dict[str, Any]
    has_begun: Callable[[], bool]
    has_stopped: Callable[[], bool]


class Model:
    """A model server whose generations say one word and never end."""

    def __init__(self, url: str) -> None:
        self.url = url

    def count(self, what: str) -> int:
        return int(httpx.get(f"{self.url}/__statistics").json()[what])

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api/version").is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("model")
    endless = {"fault": "hang", "endpoint": "generate", "after_tokens": 1}
    (folder / "script.json").write_text(json.dumps({"models": [{"name": "slow"}], "scripts": [endless]}))
    model = Model(f"http://127.0.0.1:{(port := servers.free_port())}")
    argv = [sys.executable, "-m", "ai_task_orchestra.testing.scripted_ollama", "--port", str(port)]
    with servers.process([*argv, "--script", str(folder / "script.json")], log=folder / "log"):
        wait_until_sync(model.is_up, timeout=100, description="the model server answers")
        yield model


@pytest.fixture(scope="module")
def worker(site: Site, model: Model) -> Iterator[WorkerProcess]:
    with site.worker("stopper", ollama_host=model.url) as worker:
        yield worker


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.close()


KINDS = ("program", "clone", "request", "generate", "wait", "retried")


@pytest.fixture
def going(kind: str, silent: SilentServer, model: Model, tmp_path: Path) -> Going:
    """What goes on for ever in a task of this kind."""
    if kind in ("clone", "request"):
        return Going({"url": silent.url}, silent.has_a_caller, silent.was_left)
    if kind == "generate":
        cancelled = model.count("cancelled")
        return Going({}, lambda: model.count("running") == 1, lambda: model.count("cancelled") == cancelled + 1)
    if kind == "wait":
        return Going({}, lambda: True, lambda: True)
    file = tmp_path / "pids"
    if kind == "retried":
        command = python(f"open({str(file)!r}, 'a').close(); raise SystemExit(1)")
        return Going({"command": command}, file.exists, lambda: True)

    def pids() -> list[int]:
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    command = python(_STUBBORN.replace("PATH", repr(str(file))))
    return Going({"command": command}, lambda: len(pids()) == 4, lambda: not alive(pids()))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_step_stops_with_everything_it_has_begun(
    bench: CoreBench, site: Site, worker: WorkerProcess, kind: str, going: Going
) -> None:
    task_id = await bench.submit(template=site.template(kind), parameters=going.parameters)
    run_id = await bench.run_of(task_id)
    await bench.status(task_id, "running", timeout=100)
    await wait_until(going.has_begun, timeout=100, description="the step has begun")
    process = await child_of(bench, run_id)

    await bench.cancel(task_id)

    await bench.status(task_id, "cancelled", timeout=10)
    assert not alive([process])
    await wait_until(going.has_stopped, timeout=2, description="nothing of it goes on")
    assert [attempt.outcome for attempt in (await bench.get(task_id)).attempts] == ["cancelled"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "retried"])
async def test_a_step_that_takes_too_long_stops_with_everything_it_has_begun(
    bench: CoreBench, site: Site, worker: WorkerProcess, kind: str, going: Going
) -> None:
    limit = 10 if kind == "program" else 3  # five processes have to start before it is over
    parameters = going.parameters | {"limit": limit}
    task_id = await bench.submit(template=site.template(kind), parameters=parameters)
    await bench.status(task_id, "running", timeout=100)
    await wait_until(going.has_begun, timeout=100, description="the step has begun")

    error = (await bench.status(task_id, "failed", timeout=100)).error

    assert error == {"type": "timeout", "message": f"it took longer than {limit} s", "step": "work"}
    assert going.has_stopped()


async def child_of(bench: CoreBench, run_id: str) -> int:
    """The process that executes a flow run."""

    async def signed() -> int | None:
        run = (await bench.prefect.http.get(f"/flow_runs/{run_id}")).json()
        pid: str = (run["infrastructure_pid"] or "").rpartition(":")[2]
        return int(pid) if pid else None

    return await wait_until(signed, timeout=30, description="its process is known")
