"""The REST API behind a real HTTP server: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from api.migrate import upgrade
from tests.support.api_app import KEY, write_templates
from tests.support.servers import free_port, new_database, process
from tests.support.waiting import wait_until_sync


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve `app`, lifespan included, on a free loopback port; yields its address."""
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until_sync(lambda: server.started or not thread.is_alive(), description="the server listens")
        assert server.started, "the application did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def api_environment(home: Path, server: EmbeddedPostgres) -> dict[str, str]:
    """Variables for a process with a migrated database, a free port, and nobody at Prefect's address."""
    return os.environ | {
        "ORCHESTRA_HOME": str(home),
        "ORCHESTRA_TEMPLATES_DIR": str(write_templates(home / "templates")),
        "ORCHESTRA_DATABASE_URL": asyncio.run(_migrated_database(server)),
        "ORCHESTRA_PORT": str(free_port()),
        "ORCHESTRA_API_KEY": KEY,
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
    }


@contextlib.contextmanager
def running(environment: dict[str, str], log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m <arguments>` once it answers, and its address."""
    url = f"http://127.0.0.1:{environment['ORCHESTRA_PORT']}"
    with process([sys.executable, "-m", *arguments], env=environment, log=log) as child:
        wait_until_sync(lambda: answers(url) or child.poll() is not None, timeout=60, description="the API answers")
        assert child.poll() is None, log.read_text()
        yield child, url


def answers(url: str) -> bool:
    """Whether an API serves there."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


async def _migrated_database(server: EmbeddedPostgres) -> str:
    url = await new_database(server)
    await upgrade(url)
    return url
