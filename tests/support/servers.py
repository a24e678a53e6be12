"""Real servers for tests: each on a free loopback port, stopped by its process id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from ai_task_orchestra.stack import postgres as embedded
from tests.support.waiting import wait_until_sync


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that PostgreSQL's account may enter (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory(prefix="orchestra-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@contextlib.contextmanager
def process(argv: list[str], *, env: dict[str, str] | None = None, log: Path, stop: int = signal.SIGTERM, **options):
    """A child with its output in `log`; stopped by signal, killed if it stays."""
    with log.open("ab") as output:
        child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(stop)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def postgres() -> Iterator[embedded.EmbeddedPostgres]:
    """A PostgreSQL server with the databases `prefect` and `orchestra`."""
    with open_folder() as home:
        server = embedded.prepare(home, free_port())
        options = embedded.popen_account(server.user)
        with process(server.argv, log=home / "postgres.log", stop=signal.SIGINT, cwd="/", **options):
            _in_a_loop_of_its_own(server.wait_ready)
            _in_a_loop_of_its_own(server.create_databases)
            yield server


def _in_a_loop_of_its_own(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Also where the caller's thread has a running loop: a fixture that an async one asks for, for example."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(work())).result()


async def new_database(server: embedded.EmbeddedPostgres) -> str:
    """The address of a fresh, empty database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(server.url("postgres"))
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    return server.url(name)


def prefect_environment(home: Path) -> dict[str, str]:
    """Our environment without any Prefect or orchestra setting of the person who runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ORCHESTRA_", "OLLAMA_"))}
    return kept | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
    }


@contextlib.contextmanager
def prefect_server(server: embedded.EmbeddedPostgres, database_url: str | None = None) -> Iterator[str]:
    """A Prefect server on PostgreSQL; yields its API address."""
    port = free_port()
    url = (database_url or server.url("prefect")).replace("postgresql://", "postgresql+asyncpg://", 1)
    with open_folder() as home:
        env = prefect_environment(home) | {"PREFECT_API_DATABASE_CONNECTION_URL": url}
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with process(argv, env=env, log=home / "prefect.log", cwd=home):

            def ready() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    return httpx.get(f"http://127.0.0.1:{port}/api/ready", timeout=2).status_code == 200
                return False

            wait_until_sync(ready, timeout=160, description=f"Prefect server ready; log: {home / 'prefect.log'}")
            yield f"http://127.0.0.1:{port}/api"
