"""A catalog of flows for worker tests: what `flows.catalog` is in production.

Besides the flows written here it has a no-op flow for each YAML file in the template folder.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from prefect import flow, get_run_logger, task

from ai_task_orchestra.lease import OWN_LEASE

# A process in a session of its own that survives SIGTERM, and writes its pid to the file named.
_STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[2] == "daemon":
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
with open(sys.argv[1], "a") as out: out.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


@flow(persist_result=False)
async def noop(number: int = 0) -> int:
    return number


@flow(persist_result=False)
async def wait(seconds: float = 60.0) -> None:
    await asyncio.sleep(seconds)


@flow(persist_result=False)
async def fail() -> None:
    raise ValueError("as it was told")


@flow(persist_result=False)
async def end_process(code: int) -> None:
    os._exit(code)


@task(persist_result=False)
async def add(one: int, two: int) -> int:
    return one + two


@flow(persist_result=False)
async def talk(lines: int) -> None:
    """Logs lines, the last one as late as possible, and runs a task."""
    await add(1, 2)
    for number in range(lines):
        get_run_logger().info("line %d", number)


@flow(persist_result=False)
async def open_files() -> None:
    """Logs what the process has open: connections within the machine, pipes, other regular files than the log."""
    links = [path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]  # noqa: ASYNC240
    local = psutil.Process().net_connections(kind="unix")
    get_run_logger().info("open: %d local, %d pipes", len(local), sum(link.startswith("pipe") for link in links))


@flow(persist_result=False)
async def look_at_lease() -> None:
    lease = OWN_LEASE.get()
    get_run_logger().info("lease held: %s", lease is not None and lease.held)


@flow(persist_result=False)
async def leave_processes(pids: str, seconds: float = 60.0) -> None:
    """Starts a stubborn child, a stubborn session and a stubborn daemon; they write their pids to the file `pids`."""
    command = [sys.executable, "-S", "-c", _STUBBORN, pids]
    subprocess.Popen([*command, "child"])  # noqa: ASYNC220
    subprocess.Popen([*command, "session"], start_new_session=True)  # noqa: ASYNC220
    subprocess.Popen([*command, "daemon"])  # noqa: ASYNC220
    await asyncio.sleep(seconds)


@flow(persist_result=False)
def blocking(seconds: float = 0.0) -> None:
    """Not async: deployments of other people's flows may be so."""
    get_run_logger().info("in %s", Path.cwd().name)
    time.sleep(seconds)


async def _say_name() -> None:
    get_run_logger().info("made from a template")


for _path in Path(os.environ.get("ORCHESTRA_TEMPLATES_DIR", "/nonexistent")).glob("*.yaml"):
    globals()[_path.stem] = flow(name=_path.stem, persist_result=False)(_say_name)
