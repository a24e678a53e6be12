"""The stack of this project, as `orchestra up` starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from benchmarks.load import Connection
from benchmarks.processes import Usage, clean_environment, running, usage_by_role
from benchmarks.times import TaskTimes
from tests.support.servers import free_port, open_folder

ROOT = Path(__file__).parents[1]
START_SECONDS = 180.0

#: One step that does nothing: the smallest task there is.
NOOP = """
name: noop
description: Does nothing
parameters: []
steps:
  - type: wait
    seconds: 0
"""
_ROLES = {
    "ai_task_orchestra.cli api": "API",
    "ai_task_orchestra.cli worker": "worker",
    "worker.template_process": "template and children",
    "server start": "Prefect server",
    "ai_task_orchestra.stack.prefect_server": "Prefect server",
    "bin/postgres": "PostgreSQL",
    "ai_task_orchestra.model_backend": "model backend",
    "scripted_ollama": "model backend",
}
#: What a row of `task` has when the times of its task are known.
_ENDED = "SELECT id, created_at, started_at, completed_at FROM task WHERE id = ANY($1) AND completed_at IS NOT NULL"


@dataclass
class OurStack:
    """A running stack. `database` is a connection to our database, for looking only."""

    home: Path
    process: subprocess.Popen[bytes]
    api_url: str
    prefect_url: str
    key: str
    prefect_auth: tuple[str, str]
    database: asyncpg.Connection
    name: str = "ours"

    def connection(self) -> Connection:
        return Connection(f"{self.api_url}/api/v1", {"X-API-Key": self.key})

    def submission(self, connection: Connection, **more: Any) -> bytes:
        return connection.prepare("POST", "/tasks", {"template": "noop", "parameters": {}, **more})

    async def times(self, ids: Collection[str]) -> dict[str, TaskTimes]:
        rows = await self.database.fetch(_ENDED, list(ids))
        return {
            str(row["id"]): TaskTimes(row["created_at"], row["started_at"] or row["completed_at"], row["completed_at"])
            for row in rows
        }

    def usage(self) -> dict[str, Usage]:
        return usage_by_role([self.process.pid], _role)

    async def commits(self) -> dict[str, int]:
        await asyncio.sleep(1.2)  # PostgreSQL counts with a delay of a second
        rows = await self.database.fetch("SELECT datname, xact_commit FROM pg_stat_database WHERE datname IS NOT NULL")
        return {row["datname"]: row["xact_commit"] for row in rows}

    def pids(self) -> dict[str, list[int]]:
        """The processes of each part."""
        found: dict[str, list[int]] = {}

        def role(process: psutil.Process, above: str) -> str:
            word = _role(process, above)
            found.setdefault(word, []).append(process.pid)
            return word

        usage_by_role([self.process.pid], role)
        return found


@contextlib.asynccontextmanager
async def our_stack(**settings: str) -> AsyncIterator[OurStack]:
    """A stack in a home of its own, with a scripted model server; `settings` are further environment variables."""
    with open_folder() as home:
        templates = home / "templates"
        templates.mkdir()
        (templates / "noop.yaml").write_text(NOOP)
        ports = {name: str(free_port()) for name in ("ORCHESTRA_PORT", "ORCHESTRA_PREFECT_PORT")}
        model = free_port()
        env = clean_environment(
            ORCHESTRA_HOME=str(home),
            ORCHESTRA_TEMPLATES_DIR=str(templates),
            OLLAMA_HOST=f"http://127.0.0.1:{model}",
            **ports,
            **settings,
        )
        script = home / "models.json"
        script.write_text(json.dumps({"models": [{"name": "tiny"}]}))
        ollama = [sys.executable, "-m", "ai_task_orchestra.testing.scripted_ollama", "--port", str(model)]
        up = [sys.executable, "-m", "ai_task_orchestra.cli", "up"]
        log = home / "up.log"
        with (
            running([*ollama, "--script", str(script)], env=env, log=home / "ollama.log", cwd=ROOT),
            running(up, env=env, log=log, cwd=ROOT) as process,
        ):
            base = f"http://127.0.0.1:{ports['ORCHESTRA_PORT']}"
            await _ready(base, process, log)
            url = (home / "database-url").read_text().strip()
            user, _, password = (home / "prefect-auth").read_text().strip().partition(":")
            database = await asyncpg.connect(url)
            try:
                yield OurStack(
                    home,
                    process,
                    base,
                    f"http://127.0.0.1:{ports['ORCHESTRA_PREFECT_PORT']}/api",
                    (home / "api-key").read_text().strip(),
                    (user, password),
                    database,
                )
            finally:
                await database.close()


async def _ready(base: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with asyncio.timeout(START_SECONDS), httpx.AsyncClient(timeout=2, trust_env=False) as client:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the stack ended: {log.read_text()[-2000:]}")
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{base}/ready")).status_code == 200 and "curl" in log.read_text():
                    return
            await asyncio.sleep(0.2)


def _role(process: psutil.Process, above: str) -> str:
    command = " ".join(process.cmdline())
    if command.startswith("postgres: "):  # a server process says which database it works for
        return f"PostgreSQL for {database}" if (database := _database_of(command)) else "PostgreSQL"
    found = next((role for mark, role in _ROLES.items() if mark in command), "")
    return found or above or "supervisor"


def _database_of(title: str) -> str | None:
    """The database in a title such as `postgres: user database 127.0.0.1(40000) idle`."""
    words = title.split()
    return words[2] if len(words) > 3 and "(" in words[3] else None
