"""Getting the small model's file through a child that can be stopped, with its progress shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_task_orchestra.stack.child import ChildSpec, StartError
from ai_task_orchestra.stack.log_files import LogFile
from ai_task_orchestra.stack.supervisor import Supervisor

LOOK_SECONDS = 0.3


async def fetch(supervisor: Supervisor, spec: ChildSpec, show: Callable[[str], None]) -> Path:
    """Run the child that fetches; the file it names. `show` is told how far it is.

    The child writes JSON lines: `{"completed", "total"}` in bytes, and at the end `{"path"}` or `{"error"}`.

    Raises:
        StartError: it failed; in its own words if it had any.
    """
    log = supervisor.log_of(spec.name)
    watching = asyncio.create_task(_watch(log, show))
    try:
        await supervisor.run(spec)
    except StartError as exc:
        said = _last(log).get("error")
        raise StartError(str(said)) if said else exc from exc
    finally:
        watching.cancel()
    path = _last(log).get("path")
    if not path:
        raise StartError(f"{spec.name} named no file{log.last_words()}")
    return Path(str(path))


async def _watch(log: LogFile, show: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        line = _last(log)
        if line.get("total"):
            show(f"fetching the model, once: {line['completed'] / 1e6:.0f} of {line['total'] / 1e6:.0f} MB")


def _last(log: LogFile) -> dict[str, Any]:
    """The newest line that is a JSON object."""
    for text in reversed(log.last_lines()):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}
