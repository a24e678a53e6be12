"""The history: one file, appended to by steps and clients. Its order is the order in which things happened.

Whoever writes has either seen the thing happen or is about to do it: a step's `start` stands before its work, its
`end` behind it; a client's `ask` before the request, its `answer` behind the reply.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Journal:
    """The history file, as the driver and the checker use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.touch()
            path.chmod(0o666)  # steps may run under another account

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event, on the disk when this returns."""
        line = json.dumps({"kind": kind, "at": time.time(), **fields}).encode() + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line)
            os.fsync(file)
        finally:
            os.close(file)

    @property
    def size(self) -> int:
        """Where the next event will stand, in bytes."""
        return self.path.stat().st_size

    def events(self, since: int = 0) -> list[Event]:
        """The events from byte `since` on, each with its `place` in the order."""
        with self.path.open("rb") as file:
            file.seek(since)
            return [json.loads(line) | {"place": place} for place, line in enumerate(file)]
