"""`pull`: get the default model. There is no registry behind this backend, so that no other name can be pulled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, cast

from ai_task_orchestra.model_backend.installed import Shelf, full_name
from ai_task_orchestra.model_backend.lifeline import TIDY_SECONDS
from ai_task_orchestra.model_backend.model_file import MODEL_NAME, SHA256
from ai_task_orchestra.model_backend.protocol import ProtocolError

COMMAND = (sys.executable, "-m", "ai_task_orchestra.model_backend.fetch", "--json")
Install = Callable[[Path], None]
"""Puts a fetched file on the shelf; may block."""


async def pull(shelf: Shelf, name: str, install: Install) -> AsyncGenerator[dict[str, Any], None]:
    """The records of a `pull`. The first is always one of progress, so that errors come as a line, as from Ollama.

    Raises:
        ProtocolError: 500, the name is unknown or the download failed.
    """
    yield {"status": "pulling manifest"}
    if not shelf.has(name):
        if full_name(name) != MODEL_NAME:
            raise ProtocolError(500, "pull model manifest: file does not exist")
        async for record in _fetch(install):
            yield record
    yield {"status": "verifying sha256 digest"}
    yield {"status": "success"}


async def _fetch(install: Install) -> AsyncGenerator[dict[str, Any], None]:
    """Download in a process of its own: a caller that hangs up ends it, and so does our own end."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--parent",
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # pip is part of the group that ends together
    )
    output = cast(asyncio.StreamReader, process.stdout)
    status = f"pulling {SHA256[:12]}"
    try:
        async for line in output:
            news = json.loads(line)
            if "error" in news:
                raise ProtocolError(500, news["error"])
            if "path" in news:
                await asyncio.to_thread(install, Path(news["path"]))
                return
            yield {"status": status, "digest": f"sha256:{SHA256}", **news}
        raise ProtocolError(500, "the download stopped")
    finally:
        await _end_group(process)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End the download and pip, with a moment to remove the half-finished file."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), TIDY_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
