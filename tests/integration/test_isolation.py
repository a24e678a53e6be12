"""A hostile script against every level of isolation that this machine has: what it gets, and that it is told.

Started as root the scripts have an account of their own, started as anybody else they have ours: the tests hold for
both.
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
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import IsolationError
from ai_task_orchestra.isolation.offer import machine_offer
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
    # In a file system of its own it may have folders of the same names: what counts is what is to be seen out here.
    written = [path for path in map(Path, found.pop("writing outside", [])) if path.exists()]
    for path in written:
        path.unlink()
    return found | ({"writing outside": written} if written else {})


def test_this_machine_offers_what_its_kernel_has() -> None:
    """On a machine that offers nothing every other test here would pass."""
    if OFFER.landlock >= 2 and Path("/proc/self/status").read_text().count("Seccomp:"):
        assert OFFER.highest >= 1
    assert (OFFER.accounts > 0) is ROOT


@pytest.mark.parametrize("level", [each for each in LEVELS if each])
async def test_a_hostile_script_gets_no_more_than_is_said_to_be_open(
    folder: Path, around: Surroundings, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = await attack(context_at(level, folder), around)

    permissions = {} if ROOT else {"permissions of our files": around.targets["secret_files"]}
    assert found == ({} if level == 2 else {"seeing the worker": True} | permissions)
    assert alive(around.mark) == []
    assert f"hostile.py runs at isolation level {level}, without network" in caplog.messages
    assert ("the list of all processes" in caplog.text) is (level == 1)


async def test_without_isolation_the_task_says_what_is_open(
    folder: Path, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    context = context_at(0, folder)
    found = await attack(context, around)

    (said,) = [record for record in caplog.records if "can also reach" in record.message]
    assert said.levelno == logging.WARNING
    assert found.keys() >= {"seeing the worker", "TCP", "UDP", "abstract Unix socket"}
    assert "the network" in said.message
    assert "the list of all processes" in said.message
    assert ("secret files" in found) is ("files and processes of the worker's account" in said.message) is not ROOT
    assert alive(around.mark) == []  # the supervisor sees to that at every level
    assert context.usage.isolation_level == 0


@pytest.mark.parametrize("level", [each for each in LEVELS if each])
async def test_what_a_script_needs_is_there(folder: Path, level: int) -> None:
    context = context_at(level, folder, program_dirs=(folder / "tools",), input_dirs=(folder / "data",))
    for name in ("tools", "data"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    script = f"""\
        set -e
        echo seen > file; mktemp > /dev/null; echo x > /dev/stderr; head -c 1 /dev/urandom > /dev/null
        cat {folder}/tools/file {folder}/data/file; test -r /etc/passwd; test -r /etc/ssl; test -d /proc/self/fd
        mkdir a b; touch a/c; mv a/c b/c; ln -s b/c link; cat <(echo substituted)
        """
    (context.workspace / "a.bash").write_text(script)
    outputs = await ExecuteScript().run({"script": "a.bash"}, context)

    assert outputs["output"] == "toolsdatasubstituted\n"
    assert (context.workspace / "file").read_text() == "seen\n"


@pytest.mark.parametrize("level", [each for each in LEVELS if each])
async def test_what_is_only_to_be_read_can_not_be_written(folder: Path, level: int) -> None:
    data = folder / "data"
    data.mkdir(mode=0o777)
    data.chmod(0o777)
    context = context_at(level, folder, input_dirs=(data,))
    command = ["sh", "-c", f"ls {data} && ! touch {data}/x 2>/dev/null && ! rm -r {data} 2>/dev/null"]
    await RunCommand().run({"command": command}, context)

    assert data.exists()


@pytest.mark.skipif(not ROOT, reason="only root can give its tasks accounts of their own")
@pytest.mark.parametrize("level", LEVELS)
async def test_started_as_root_every_task_has_an_account_of_its_own(folder: Path, level: int) -> None:
    """The files of a task are its account's; it has no groups and can't become anybody else."""
    context = context_at(level, folder)
    accounts = set()
    for attempt in ("1", "2"):
        workspace = context.workspace.with_name(attempt)
        workspace.mkdir(exist_ok=True)
        command = ["sh", "-c", "id -u; id -g; id -G; grep -c '^Cap...:.0*$' /proc/self/status; touch mine"]
        outputs = await RunCommand().run({"command": command}, replace(context, workspace=workspace))
        uid, gid, groups, empty_capability_sets = outputs["output"].split()
        assert uid == gid == groups
        assert empty_capability_sets == "5"
        assert (workspace / "mine").stat().st_uid == int(uid) >= OFFER.accounts
        accounts.add(uid)

    assert len(accounts) == 2


async def test_a_level_that_the_machine_does_not_offer_is_no_silent_downgrade(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = replace(OFFER, namespaces="not allowed", landlock=0)
    monkeypatch.setattr("flows.clients.confinement.machine_offer", lambda: weak)
    for wish in ("1", "2", "1+", "2+"):
        with pytest.raises(IsolationError, match="offers level 0"):
            await RunCommand().run({"command": ["true"]}, context_at(wish, folder))


@pytest.mark.skipif(not ROOT, reason="anybody else's scripts run under the account that made the folder")
async def test_a_home_that_the_tasks_account_can_not_enter_is_said(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)  # noqa: PTH101
    with pytest.raises(IsolationError, match="chmod"):
        await RunCommand().run({"command": ["true"]}, context_at(0, tmp_path))


def _enterable_by_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


@pytest.mark.skipif(not ROOT, reason="these tests are being run by an ordinary account")
@pytest.mark.skipif(
    not (_enterable_by_all(Path(sys.executable)) and _enterable_by_all(Path(__file__))),
    reason="no other account can use this checkout or its interpreter",
)
def test_the_same_holds_for_a_worker_of_an_ordinary_account(folder: Path) -> None:
    account = 61_100
    os.chown(folder, account, account)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--basetemp={folder}/tmp", __file__],
        cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        user=account,
        group=account,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
