"""The product under test: `orchestra up` with its supervisor, a second worker, a scripted model server.

One stack serves many histories. The second worker has a name of its own that stays the same when it is started again,
as a service's would; the first one's name changes with its process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import httpx
import psutil

from ai_task_orchestra.stack.child import EXEC_CHILD
from tests.acceptance.conftest import ORCHESTRA, ROOT, RunningStack, environment, model_server, running
from tests.histories.journal import Journal
from tests.histories.plan import SLOTS
from tests.histories.templates import MODEL, write_templates
from tests.support import servers
from tests.support.waiting import wait_until_sync

LEASE_SECONDS: Final = 2.0
HEARTBEAT_SECONDS: Final = 0.5
SECOND_WORKER: Final = "second"
POOL: Final = "default"
_WAIT_SECONDS: Final = 120.0


class SecondWorker:
    """A worker beside the one of `up`; started again when it has ended, as a service manager would."""

    name = SECOND_WORKER

    def __init__(self, stack: RunningStack) -> None:
        self._environment = stack.environment | {
            "PREFECT_API_URL": stack.prefect_api_url,
            "PREFECT_API_AUTH_STRING": stack.prefect_auth,
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
            "PREFECT_HOME": str(stack.home / "prefect"),
            "ORCHESTRA_WORKER_NAME": self.name,
        }
        self._log = stack.home / "logs" / "second-worker.log"
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def keep(self) -> None:
        """Start it again if it has ended."""
        if self._process.poll() is not None:
            self._process = self._start()

    def stop(self) -> None:
        """End it in order."""
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        dies_with_us = [sys.executable, "-I", "-S", str(EXEC_CHILD), str(os.getpid()), str(int(signal.SIGKILL)), "-"]
        argv = [*dies_with_us, str(ORCHESTRA), "worker", "--pool", POOL]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                argv,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


class HistoryStack:
    """The running product with its history file.

    `cut_off`: tasks of the history before that may still be worked for by a worker that was cut off.
    """

    def __init__(self, up: RunningStack, journal: Journal, second: SecondWorker) -> None:
        self.up, self.journal, self.second = up, journal, second
        self.cut_off: frozenset[str] = frozenset()

    @property
    def home(self) -> Path:
        return self.up.home

    @cached_property
    def has_batches(self) -> bool:
        """Whether the API takes several tasks in one call."""
        document = self.up.api.get(self.up.api.base_url.join("/openapi.json")).json()
        return "/api/v1/tasks/batch" in document["paths"]

    @property
    def database_url(self) -> str:
        """Our database's address; Prefect's lies beside it."""
        return (self.home / "database-url").read_text().strip()

    def child(self, *words: str) -> psutil.Process | None:
        """The child of `up` whose command line has these words; None while it is away."""
        for process in psutil.Process(self.up.process.pid).children():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if "exec_child.py" not in " ".join(command) and all(word in command for word in words):
                    return process
        return None

    def worker(self, number: int) -> tuple[str, psutil.Process] | None:
        """Name and process of the first or second worker; None while it is away."""
        if number:
            with contextlib.suppress(psutil.Error):
                return self.second.name, psutil.Process(self.second.pid)
            return None
        first = self.child("worker")
        return (f"{socket.gethostname()}-{first.pid}", first) if first else None

    def is_whole(self) -> bool:
        """Whether every part is up: the API ready, and both workers heard of by Prefect since they were started."""
        self.second.keep()
        with contextlib.suppress(httpx.HTTPError, psutil.Error, ValueError):
            if self.up.api.get(self.up.api.base_url.join("/ready"), timeout=5).status_code != 200:
                return False
            beats = self._beats()
            workers = [self.worker(0), self.worker(1)]
            return all(found and beats.get(found[0], 0.0) > found[1].create_time() for found in workers)
        return False

    def wait_until_whole(self) -> None:
        """Wait until every part is up."""
        wait_until_sync(self.is_whole, timeout=_WAIT_SECONDS, description=f"the stack is whole; logs: {self.home}")

    def _beats(self) -> dict[str, float]:
        """When Prefect last heard of each worker, in Unix time."""
        answer = self.up.prefect.post(f"/work_pools/{POOL}/workers/filter", json={"limit": 200}, timeout=5)
        answer.raise_for_status()
        return {worker["name"]: _unix(worker["last_heartbeat_time"]) for worker in answer.json()}


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextlib.contextmanager
def history_stack() -> Iterator[HistoryStack]:
    """A stack that is whole; at the end nothing of it may be left."""
    models = [{"name": MODEL, "size_bytes": 1_000_000_000, "text": "The next one."}]
    with servers.open_folder() as home, servers.open_folder() as place, model_server(models) as ollama:
        journal = Journal(place / "history.jsonl")
        write_templates(place / "templates", journal.path, place / "sources")
        env = environment(
            home,
            OLLAMA_HOST=ollama,
            ORCHESTRA_TEMPLATES_DIR=str(place / "templates"),
            ORCHESTRA_WORKER_LEASE_SECONDS=str(LEASE_SECONDS),
            ORCHESTRA_WORKER_HEARTBEAT_SECONDS=str(HEARTBEAT_SECONDS),
            ORCHESTRA_WORKER_LIMIT=str(SLOTS),
            ORCHESTRA_RESTART_PAUSE_SECONDS="1",
        )
        with running(env, ollama) as up:
            second = SecondWorker(up)
            try:
                stack = HistoryStack(up, journal, second)
                stack.wait_until_whole()
                yield stack
            finally:
                second.stop()
