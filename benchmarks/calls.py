"""Which requests Prefect's server gets for one task, counted in its own access log."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Final

from benchmarks import parts
from benchmarks.ours import OurStack
from benchmarks.parts import Figures

#: The setting with which Prefect's server writes one line per request.
LOGGED: Final = {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"}
_REQUEST = re.compile(r'"(?P<method>[A-Z]+) (?P<path>[^ ?"]+)[^"]*" (?P<status>\d+)|"(?P<socket>WebSocket [^ "]+)')
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


async def calls(stack: OurStack, count: int, *, at_once: bool) -> Figures:
    """Requests per task: one after the other, or all submitted together."""
    log = stack.home / "logs" / "prefect.log"
    began = log.stat().st_size
    async with stack.connection() as connection:
        ids = []
        for _ in range(count):
            _, body = await connection.send(stack.submission(connection))
            ids.append(json.loads(body)["id"])
            if not at_once:
                await parts.finished(stack, ids)
                await asyncio.sleep(parts.REST_SECONDS)
        await parts.finished(stack, ids)
    await asyncio.sleep(3)
    with log.open("rb") as file:
        file.seek(began)
        lines = file.read().decode(errors="replace").splitlines()
    return {name: n / count for name, n in sorted(_counted(lines).items(), key=lambda item: -item[1])}


def _counted(lines: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in lines:
        if match := _REQUEST.search(line):
            what = match["socket"] or f"{match['method']} {match['path']}"
            failed = f" ({match['status']})" if match["status"] and int(match["status"]) >= 400 else ""
            found[_ID.sub("{id}", what) + failed] += 1
    return found
