"""Where a process spends its time while tasks run: py-spy, which is installed by hand (`pip install py-spy`)."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from pathlib import Path
from typing import Final

from benchmarks import parts
from benchmarks.load import pour
from benchmarks.ours import OurStack

PROCESSES: Final = ("API", "worker", "Prefect server", "template and children", "supervisor")


async def profile(stack: OurStack, role: str, count: int, folder: Path) -> list[Path]:
    """Record the processes of a part while `count` tasks are worked off; the files written, in speedscope's format.

    Raises:
        RuntimeError: py-spy is not installed.
    """
    program = shutil.which("py-spy")
    if program is None:
        raise RuntimeError("py-spy is not there; install it by hand: .venv/bin/pip install py-spy")
    recorders, files = [], []
    for pid in stack.pids()[role]:
        file = folder / f"profile-{role.replace(' ', '-').lower()}-{pid}.json"
        options = ["--format", "speedscope", "--rate", "200", "--subprocesses"]
        recorders.append(
            await asyncio.create_subprocess_exec(program, "record", *options, "-o", str(file), "--pid", str(pid))
        )
        files.append(file)
    async with stack.connection() as connection:
        bodies, _, _ = await pour([connection], stack.submission(connection), count)
    await parts.finished(stack, [json.loads(body)["id"] for body in bodies])
    for recorder in recorders:
        if recorder.returncode is None:
            recorder.send_signal(signal.SIGINT)  # it writes its file
        await recorder.wait()
    return files
