"""A database as it is after a year: rows put there by SQL, then the same questions as before."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any, Final

import httpx

from benchmarks import parts
from benchmarks.load import Connection
from benchmarks.ours import OurStack
from benchmarks.parts import Figures
from benchmarks.times import spread

#: The backlog is less urgent than everything that is measured beside it.
BACKLOG_PRIORITY: Final = 1
URGENT: Final = 10
_CHUNK: Final = 100_000

_FINISHED = """
WITH made AS (
    INSERT INTO task (id, tenant, template, parameters, priority, status, phase, created_at, started_at, completed_at,
                      result, resource_usage, work_pool)
    SELECT gen_random_uuid(), 'default', (ARRAY['noop', 'report', 'summary'])[1 + n % 3], '{"text": "some words"}',
        1 + n % 10, (ARRAY['completed', 'completed', 'completed', 'failed', 'cancelled'])[1 + n % 5], 'ended',
        now() - interval '1 day' - n * interval '1 second', now() - interval '1 day' - n * interval '1 second',
        now() - interval '1 day' - (n - 1) * interval '1 second', '{"output": "some more words"}',
        '{"memory_used_gb": 0.1, "cpu_time_seconds": 0.01}', 'default'
    FROM generate_series($1::int, $2::int) AS n
    RETURNING id, started_at, completed_at
)
INSERT INTO attempt (task_id, generation, flow_run_id, worker, started_at, ended_at, outcome)
SELECT id, 1, gen_random_uuid(), 'seeded', started_at, completed_at, 'completed' FROM made
"""
_QUEUED = """
INSERT INTO task (id, tenant, template, parameters, priority, status, phase, created_at, work_pool)
SELECT gen_random_uuid(), 'default', 'noop', '{}', $3, 'queued', 'waiting', now() - interval '1 hour', 'default'
FROM generate_series($1::int, $2::int) AS n
"""


async def seed(stack: OurStack, *, finished: int, queued: int) -> Figures:
    """Write the rows; how long it took."""
    began = time.monotonic()
    for start in range(1, finished + 1, _CHUNK):
        await stack.database.execute(_FINISHED, start, min(start + _CHUNK - 1, finished), timeout=600)
    if queued:
        await stack.database.execute(_QUEUED, 1, queued, BACKLOG_PRIORITY, timeout=600)
    await stack.database.execute("VACUUM ANALYZE task", timeout=600)
    return {"seeding_seconds": time.monotonic() - began}


async def pause_backlog(stack: OurStack, paused: bool) -> None:
    """Have Prefect hand out nothing of the backlog, or all of it."""
    async with httpx.AsyncClient(base_url=stack.prefect_url, auth=stack.prefect_auth, trust_env=False) as http:
        queue = f"/work_pools/default/queues/priority-{BACKLOG_PRIORITY}"
        (await http.patch(queue, json={"is_paused": paused})).raise_for_status()


async def settled(stack: OurStack, window: int, give_up_seconds: float = 600.0) -> Figures:
    """Wait until the window of the backlog is in Prefect; how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(give_up_seconds):
        while await stack.database.fetchval("SELECT count(*) FROM task WHERE phase = 'ready'") < window:
            await asyncio.sleep(0.5)
    return {"window_seconds": time.monotonic() - began}


async def questions(stack: OurStack, count: int) -> Figures:
    """What a client asks, each `count` times, one after the other: p50 and p99 in milliseconds."""
    async with AsyncExitStack() as opened:
        connection = await opened.enter_async_context(stack.connection())
        some = [row["id"] for row in await stack.database.fetch("SELECT id FROM task LIMIT 200")]
        asked: dict[str, list[bytes]] = {
            "post": [stack.submission(connection, priority=URGENT)],
            "list": [connection.prepare("GET", "/tasks?limit=100")],
            "list_by_status": [connection.prepare("GET", f"/tasks?status={s}") for s in ("queued", "failed")],
            "list_deep": [connection.prepare("GET", "/tasks?limit=100&offset=50000")],
            "status": [connection.prepare("GET", "/tasks/status")],
            "get": [connection.prepare("GET", f"/tasks/{task_id}") for task_id in some],
        }
        found: Figures = {}
        for what, requests in asked.items():
            took = spread(await _each(connection, requests, count))
            found |= {f"{what}_p50_ms": took["p50"], f"{what}_p99_ms": took["p99"]}
        return found


async def _each(connection: Connection, requests: list[bytes], count: int) -> list[float]:
    took = []
    for number in range(count):
        began = time.perf_counter()
        status, body = await connection.send(requests[number % len(requests)])
        took.append((time.perf_counter() - began) * 1000)
        if status >= 400:
            raise RuntimeError(f"{status} {body[:300]!r}")
    return took


async def scale(stack: OurStack, *, finished: int, queued: int, window: int, count: int) -> dict[str, Figures]:
    """Seed, then ask: with the backlog at rest, and while it is being worked off."""
    await pause_backlog(stack, True)
    seeded = await seed(stack, finished=finished, queued=queued)
    seeded |= await settled(stack, min(window, queued))
    asked: dict[str, Any] = {"seeding": seeded}
    asked["backlog at rest"] = await questions(stack, count) | await parts.latency(stack, 20, priority=URGENT)
    await pause_backlog(stack, False)
    await asyncio.sleep(5)
    asked["backlog running"] = await questions(stack, count) | await parts.latency(stack, 20, priority=URGENT)
    return asked
