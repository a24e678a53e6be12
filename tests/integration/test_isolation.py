"""A hostile script against every level of isolation that this machine has: what it gets, and that it is told.

Started as root the scripts have an account of their own, started as anybody else they have ours: the tests hold for
both, and what differs is written down in `OPEN_AT_LEVEL_0`.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import IsolationError, LimitError
from ai_task_orchestra.isolation.offer import isolation_report, machine_offer
from flows.steps.base import StepContext
from flows.steps.execute_script import ExecuteScript
from flows.steps.run_command import RunCommand
from tests.support import servers
from tests.support.steps import alive, new_mark, step_context

SCRIPT = Path(__file__).parents[1] / "support" / "hostile_script.py"
OFFER = machine_offer()
LEVELS = sorted({0, 1 if OFFER.landlock >= 2 and not OFFER.seccomp else 0, OFFER.highest})
CANARY = f"canary-{secrets.token_hex(8)}"
ROOT = os.getuid() == 0

# What a script gets without isolation; without an account of its own it is as good as the worker.
OPEN_AT_LEVEL_0 = {"seeing the worker", "TCP", "UDP", "abstract Unix socket"}


class Surroundings:
    """Everything there is to find: files, another task, servers, shared memory. `targets` names it to the script."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.mark = new_mark()
        self._stack = AsyncExitStack()
        self.targets: dict[str, Any] = {}

    async def __aenter__(self) -> Surroundings:
        self.home.mkdir(mode=0o711)
        secret_files = [self.home / name for name in ("api-key", "prefect-auth", "database-url", "git-credentials")]
        for path in secret_files:
            path.write_text(CANARY)
            path.chmod(0o600)
        other = self.home / "workspaces" / "another-task" / "1"
        other.mkdir(parents=True, mode=0o700)
        (other / "notes").write_text("private")
        (self.home / "outputs").mkdir()
        self.targets = {
            "home": str(self.home),
            "secret_files": list(map(str, secret_files)),
            "other_file": str(other / "notes"),
            "foreign_folders": [str(self.home), str(self.home / "outputs"), str(other), "/tmp", "/var/tmp", sys.prefix],
            "canary": CANARY,
            "worker": os.getpid(),
            "worker_word": "pytest",
            "mark": self.mark,
            "shared_memory": self._shared_memory(),
            "sysv_key": self._sysv_memory(),
            **await self._servers(),
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _servers(self) -> dict[str, Any]:
        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        path, name = self.home / "socket", f"orchestra-{secrets.token_hex(8)}"
        tcp = await self._stack.enter_async_context(await asyncio.start_server(close, "127.0.0.1", 0))
        await self._stack.enter_async_context(await asyncio.start_unix_server(close, path))
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0{name}")
        await self._stack.enter_async_context(await asyncio.start_unix_server(close, sock=abstract))
        udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, ("127.0.0.1", 0))
        self._stack.callback(udp.close)
        return {
            "tcp_ports": [tcp.sockets[0].getsockname()[1]],
            "udp_port": udp.get_extra_info("sockname")[1],
            "unix_socket": str(path),
            "abstract_socket": name,
        }

    def _shared_memory(self) -> str:
        path = Path("/dev/shm") / f"orchestra-{secrets.token_hex(8)}"
        path.write_text(CANARY)
        path.chmod(0o600)
        self._stack.callback(path.unlink)
        return str(path)

    def _sysv_memory(self) -> int:
        libc, key = ctypes.CDLL(None), secrets.randbelow(2**30) + 1
        number = libc.shmget(key, 4096, 0o1000 | 0o600)
        assert number >= 0
        self._stack.callback(libc.shmctl, number, 0, None)
        return key


class Echo(asyncio.DatagramProtocol):
    """Sends back what comes."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(data, addr)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an account of a task's own may enter."""
    with servers.open_folder() as path:
        yield path


@pytest.fixture
async def around(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Surroundings]:
    monkeypatch.setenv("ORCHESTRA_API_KEY", CANARY)
    async with Surroundings(folder) as surroundings:
        yield surroundings


def context_at(level: int | str, folder: Path, **settings: Any) -> StepContext:
    """A context with the scripts of a clone, in a home that the task's own account may enter."""
    home = folder / "home"
    home.mkdir(mode=0o711, exist_ok=True)
    context = step_context(home, isolation=str(level), **settings)
    return replace(context, log=logging.getLogger("tests.isolation"))


async def attack(context: StepContext, around: Surroundings, **fields: Any) -> dict[str, Any]:
    """What the hostile script got."""
    (context.workspace / "targets").write_text(json.dumps(around.targets))
    shutil.copy(SCRIPT, context.workspace / "hostile.py")
    outputs = await ExecuteScript().run({"script": "hostile.py", "args": ["targets"], **fields}, context)
    assert outputs["isolation_level"] == int(context.settings.isolation.strip("+") or 0)
    found: dict[str, Any] = json.loads(outputs["output"])
    return found


def test_this_machine_offers_what_its_kernel_has() -> None:
    """A machine where nothing works would make every other test here pass."""
    if sys.platform == "linux" and Path("/proc/sys/kernel/seccomp").exists() and OFFER.landlock >= 2:
        assert OFFER.highest >= 1
    assert isolation_report(step_context(Path("/nonexistent")).settings if False else _settings()).highest == max(LEVELS)


def _settings() -> Any:
    from ai_task_orchestra.settings import Settings

    return Settings(_env_file=None)


@pytest.mark.parametrize("level", [each for each in LEVELS if each])
async def test_a_hostile_script_gets_nothing(folder: Path, around: Surroundings, level: int) -> None:
    found = await attack(context_at(level, folder), around)

    assert found == {}
    assert alive(around.mark) == []
