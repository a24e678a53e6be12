"""What an `orchestra up` that was killed may have left behind for a moment."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path

import psutil

from ai_task_orchestra.stack.child import StartError

# How long a stack that was killed may take to disappear before the next one gives up.
LEFTOVER_SECONDS = 15.0


async def end_former_server(data: Path) -> None:
    """End the PostgreSQL that still runs on this data directory; a stale `postmaster.pid` is left to PostgreSQL.

    Raises:
        StartError: it stays.
    """
    server = _server_on(data)
    if server is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        server.send_signal(signal.SIGINT)
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while _alive(server):
        if time.monotonic() > deadline:
            raise StartError(f"another PostgreSQL (process {server.pid}) uses {data}; stop it first")
        await asyncio.sleep(0.1)


def _server_on(data: Path) -> psutil.Process | None:
    """The process that `postmaster.pid` names, if it really is a server on `data`: numbers are used again."""
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        process = psutil.Process(pid)
        return process if str(data) in process.cmdline() else None
    except (OSError, ValueError, IndexError, psutil.Error):
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
