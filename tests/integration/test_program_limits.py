"""Programs that take all they can get: each is stopped, alone, and the error says by which limit."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import LimitError, ScriptError
from ai_task_orchestra.isolation.limits import Limits, Watch
from ai_task_orchestra.isolation.offer import machine_offer
from ai_task_orchestra.removal import remove_tree
from flows.clients._exec import descendants
from flows.steps.base import StepContext
from flows.steps.run_command import RunCommand
from tests.support import servers
from tests.support.steps import alive, new_mark, step_context

MEGABYTE = 1024 * 1024
HIGHEST = machine_offer().highest

MEMORY = "x = []\nwhile True: x.append(bytearray(20_000_000))"
# Each of them is small: it is the sum that counts.
MEMORY_OF_MANY = """
import os, time
for _ in range(8):
    if os.fork() == 0: break
x = bytearray(60_000_000)
time.sleep(600)
"""
SHARING = """
import os, sys
x = bytearray(100_000_000)
for _ in range(5):
    if os.fork() == 0: break
print(flush=True)
sys.stdin.read()
"""
SHARED_MEMORY = "import os\nf = open('/dev/shm/x', 'wb')\nwhile True: f.write(bytes(1_000_000))"
MEMORY_OF_NOBODY = """
import os
files = []
while True:
    files.append(os.memfd_create("x"))
    os.write(files[-1], bytes(10_000_000))
"""
FORK_BOMB = """
import os, time
while True:
    try: os.fork()
    except OSError: time.sleep(0.01)
"""
THREADS = """
import threading, time
threading.stack_size(65536)
while True:
    try: threading.Thread(target=time.sleep, args=(600,)).start()
    except RuntimeError: time.sleep(0.01)
"""
CPU = "import os\nos.fork()\nwhile True: pass"
ONE_FILE = "import time\nf = open('big', 'wb')\nwhile True: f.write(bytes(1_000_000))"
MANY_FILES = """
import itertools
for n in itertools.count():
    with open(str(n), 'wb') as f: f.write(bytes(1_000_000))
"""
WITHOUT_A_NAME = """
import os, itertools, time
files = []
while True:
    f = open('x', 'wb'); os.unlink('x'); files.append(f)
    f.write(bytes(1_000_000)); f.flush()
"""
CLOSED_FOLDER = """
import os, time
os.mkdir('closed'); os.chdir('closed'); os.chmod('.', 0o300)
for n in range(100_000):
    try:
        with open(str(n), 'wb') as f: f.write(bytes(1_000_000))
    except OSError: time.sleep(1)
"""
EMPTY_FILES = "import itertools\nfor n in itertools.count(): open(str(n), 'w').close()"
DEEP_FOLDERS = "import os, time\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\ntime.sleep(600)"


@pytest.fixture
def folder() -> Iterator[Path]:
    with servers.open_folder() as path:
        yield path
        remove_tree(path / "workspaces")  # folders too deep for the standard library


def context_with(folder: Path, **settings: Any) -> StepContext:
    return step_context(
        folder, **({"program_memory_bytes": 2000 * MEGABYTE, "workspace_bytes": 2000 * MEGABYTE} | settings)
    )


async def stopped(context: StepContext, code: str) -> LimitError:
    """How a program was stopped; nothing of it may be left."""
    mark = new_mark()
    with pytest.raises(LimitError) as caught:
        await RunCommand().run({"command": ["python3", "-c", code, mark]}, context)
    assert alive(mark) == []
    assert caught.value.code == "limit_reached"
    return caught.value


@pytest.mark.parametrize("code", [MEMORY, MEMORY_OF_MANY, MEMORY_OF_NOBODY], ids=["one", "many", "nobody"])
async def test_memory(folder: Path, code: str) -> None:
    context = context_with(folder, program_memory_bytes=300 * MEGABYTE)
    error = await stopped(context, code)

    assert error.limit == "memory"
    assert "0.315 GB of memory (ORCHESTRA_PROGRAM_MEMORY_BYTES)" in error.message
    assert not error.retryable


@pytest.mark.parametrize(
    ("code", "limit"),
    [(MEMORY, "memory"), (FORK_BOMB, "processes"), (MANY_FILES, "disk")],
    ids=["memory", "processes", "disk"],
)
async def test_the_limits_hold_without_isolation_too(folder: Path, code: str, limit: str) -> None:
    context = context_with(
        folder,
        isolation="0",
        program_memory_bytes=300 * MEGABYTE,
        program_processes=100,
        workspace_bytes=50 * MEGABYTE,
    )

    assert (await stopped(context, code)).limit == limit


@pytest.mark.skipif(HIGHEST < 2, reason="a program has shared memory of its own at level 2 only")
async def test_shared_memory_is_part_of_it(folder: Path) -> None:
    """It ends at a quarter of the memory limit, as on a full disk."""
    with pytest.raises(ScriptError, match="No space left"):
        await RunCommand().run(
            {"command": ["python3", "-c", SHARED_MEMORY]},
            context_with(folder, program_memory_bytes=200 * MEGABYTE),
        )


def test_memory_that_processes_share_counts_once() -> None:
    program = subprocess.Popen(["python3", "-c", SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin and program.stdout
    try:
        for _ in range(6):
            program.stdout.readline()
        processes = [program.pid, *descendants(program.pid)]
        enough, too_little = (Watch(Limits({"memory": size * MEGABYTE}), "/") for size in (200, 80))
        assert len(processes) == 6
        assert enough.look(processes) is None
        assert enough.peak_bytes > 500_000_000
        assert too_little.look(processes) == "memory"
    finally:
        program.stdin.close()
        program.wait()
        program.stdout.close()


@pytest.mark.parametrize("code", [FORK_BOMB, THREADS], ids=["processes", "threads"])
async def test_processes(folder: Path, code: str) -> None:
    error = await stopped(context_with(folder, program_processes=100), code)

    assert error.limit == "processes"
    assert "100 processes and threads (ORCHESTRA_PROGRAM_PROCESSES)" in error.message


async def test_processor_time(folder: Path) -> None:
    error = await stopped(context_with(folder, program_cpu_seconds=1), CPU)

    assert error.limit == "cpu"
    assert "more than 1 s of processor time (ORCHESTRA_PROGRAM_CPU_SECONDS)" in error.message


@pytest.mark.parametrize(
    "code",
    [ONE_FILE, MANY_FILES, WITHOUT_A_NAME, CLOSED_FOLDER],
    ids=["one file", "many files", "files without a name", "a folder closed to us"],
)
async def test_disk(folder: Path, code: str) -> None:
    error = await stopped(context_with(folder, workspace_bytes=50 * MEGABYTE), code)

    assert error.limit == "disk"
    assert "its files take 0.0524 GB (ORCHESTRA_WORKSPACE_BYTES)" in error.message


@pytest.mark.parametrize("code", [EMPTY_FILES, DEEP_FOLDERS], ids=["many", "deep"])
async def test_files(folder: Path, code: str) -> None:
    error = await stopped(context_with(folder, workspace_files=5000), code)

    assert error.limit == "files"
    assert "(ORCHESTRA_WORKSPACE_FILES)" in error.message


async def test_a_disk_that_is_nearly_full(folder: Path) -> None:
    error = await stopped(context_with(folder, disk_reserve_bytes=10**15), "import time\ntime.sleep(600)")

    assert error.limit == "full-disk"
    assert error.retryable


async def test_open_files_are_limited(folder: Path) -> None:
    code = "files = []\nwhile True: files.append(open('/dev/null'))"
    with pytest.raises(ScriptError, match="Too many open files"):
        await RunCommand().run({"command": ["python3", "-c", code]}, context_with(folder, program_open_files=100))


async def test_endless_output_fills_neither_memory_nor_disk(folder: Path) -> None:
    context = context_with(folder, max_output_bytes=MEGABYTE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given = await RunCommand().run(
        {"command": ["sh", "-c", "yes | head -c 1000000000; yes err | head -c 50000000 >&2"]}, context
    )

    assert len(given["output"]) == len(given["stderr"]) == MEGABYTE
    assert given["truncated"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50 * MEGABYTE
    assert [name for _, _, files in os.walk(folder) for name in files] == []


async def test_another_program_goes_on_meanwhile(folder: Path) -> None:
    (folder / "other").mkdir()
    other = step_context(folder / "other")
    going = asyncio.ensure_future(RunCommand().run({"command": ["sh", "-c", "sleep 3; echo done"]}, other))
    await stopped(context_with(folder, program_processes=50), FORK_BOMB)
    await stopped(context_with(folder, program_memory_bytes=200 * MEGABYTE), MEMORY)

    assert (await going)["output"] == "done\n"


def test_the_workspace_is_measured_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "big").write_bytes(bytes(2 * MEGABYTE))
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "link").symlink_to(tmp_path / "outside")
    (workspace / "one").write_bytes(bytes(MEGABYTE))
    os.link(workspace / "one", workspace / "two")

    assert Watch(Limits({"disk": 1.5 * MEGABYTE}), str(workspace)).look_at_disk() is None
    assert Watch(Limits({"disk": 0.5 * MEGABYTE}), str(workspace)).look_at_disk() == "disk"
    assert Watch(Limits({"files": 3}), str(workspace)).look_at_disk() == "files"
    assert Watch(Limits({"files": 4}), str(workspace)).look_at_disk() is None
