"""The parts of the benchmark: each does one thing to a started system and returns figures by name."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, Final

from benchmarks.load import Connection, pour
from benchmarks.processes import Usage
from benchmarks.system import System
from benchmarks.times import TaskTimes, per_second, spread

Figures = dict[str, float]

#: Between two tasks of the latency part: everything is at rest again.
REST_SECONDS: Final = 0.4
LOOK_SECONDS: Final = 0.2
GIVE_UP_SECONDS: Final = 1800.0


async def finished(
    system: System,
    ids: Collection[str],
    *,
    look_seconds: float = LOOK_SECONDS,
    give_up_seconds: float = GIVE_UP_SECONDS,
) -> dict[str, TaskTimes]:
    """The times of `ids` once all have ended.

    Raises:
        TimeoutError: they have not within `give_up_seconds`.
    """
    async with asyncio.timeout(give_up_seconds):
        while len(times := await system.times(ids)) < len(set(ids)):
            await asyncio.sleep(look_seconds)
    return times


async def latency(system: System, count: int, **more: Any) -> Figures:
    """One task after the other, each at rest: created until running, and how long the submission took."""
    took, started = [], []
    async with system.connection() as connection:
        request = system.submission(connection, **more)
        for _ in range(count):
            began = time.perf_counter()
            status, body = await connection.send(request)
            took.append((time.perf_counter() - began) * 1000)
            if status >= 400:
                raise RuntimeError(f"{status} {body[:300]!r}")
            task_id = json.loads(body)["id"]
            started.append((await finished(system, [task_id]))[task_id].start_ms)
            await asyncio.sleep(REST_SECONDS)
    return _named("start", spread(started)) | _named("post", spread(took))


async def burst(system: System, count: int, clients: int = 8) -> Figures:
    """Many tasks at once from several clients: how fast they are accepted, and how fast they are done."""
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(system.connection()) for _ in range(clients)]
        before, commits = system.usage(), await system.commits()
        bodies, took, seconds = await pour(connections, system.submission(connections[0]), count)
    times = await finished(system, [json.loads(body)["id"] for body in bodies], look_seconds=0.5)
    used = cpu_between(before, system.usage(), per=count)
    committed = {name: n - commits.get(name, 0) for name, n in (await system.commits()).items()}
    return {
        "accepted_per_second": count / seconds,
        **_named("post", spread(took)),
        "finished_per_second": per_second(list(times.values())),
        **{f"cpu_ms_per_task {role}": ms for role, ms in used.items()},
        **{f"commits_per_task {name}": n / count for name, n in committed.items() if n > count / 10},
    }


async def chain(system: System, length: int) -> Figures:
    """Tasks that each wait for the one before: from the end of one until the next one runs."""
    async with system.connection() as connection:
        ids: list[str] = []
        for _ in range(length):
            body = await _submitted(connection, system.submission(connection, depends_on=ids[-1:]))
            ids.append(body)
    times = await finished(system, ids)
    return _named("gap", spread(_gaps([times[each] for each in ids])))


async def driven_chain(system: System, length: int) -> Figures:
    """The same for a system without dependencies: whoever drives it looks every 50 ms and submits the next."""
    steps: list[TaskTimes] = []
    async with system.connection() as connection:
        for _ in range(length):
            task_id = await _submitted(connection, system.submission(connection))
            steps.append((await finished(system, [task_id], look_seconds=0.05))[task_id])
    return _named("gap", spread(_gaps(steps)))


async def fan(system: System, width: int) -> Figures:
    """One task, `width` that wait for it, one that waits for them all."""
    async with system.connection() as connection:
        root = await _submitted(connection, system.submission(connection))
        request = system.submission(connection, depends_on=[root])
        middle = [await _submitted(connection, request) for _ in range(width)]
        last = await _submitted(connection, system.submission(connection, depends_on=middle))
    times = await finished(system, [root, *middle, last], look_seconds=0.5)
    ended = times[root].ended
    return {
        "out_ms": (min(times[each].started for each in middle) - ended).total_seconds() * 1000,
        "in_ms": (times[last].started - max(times[each].ended for each in middle)).total_seconds() * 1000,
        "all_seconds": (times[last].ended - ended).total_seconds(),
    }


async def idle(system: System, seconds: float) -> Figures:
    """What each part uses while nothing is to do: share of one core, and memory."""
    await asyncio.sleep(10.0)
    before, began = system.usage(), time.monotonic()
    await asyncio.sleep(seconds)
    after, passed = system.usage(), time.monotonic() - began
    shares = {role: ms / 10 / passed for role, ms in cpu_between(before, after, per=1).items()}
    return {
        **{f"cpu_percent {role}": share for role, share in shares.items()},
        **{f"memory_mb {role}": usage.pss_mb for role, usage in after.items()},
    }


def cpu_between(before: Mapping[str, Usage], after: Mapping[str, Usage], *, per: int) -> Figures:
    """Milliseconds of processor time by role, divided by `per`; `all` is their sum."""
    none = Usage()
    used = {role: (now.cpu_seconds - before.get(role, none).cpu_seconds) * 1000 / per for role, now in after.items()}
    return used | {"all": sum(used.values())}


async def repeated(count: int, part: Callable[[], Awaitable[Figures]]) -> list[Figures]:
    """The part, `count` times."""
    return [await part() for _ in range(count)]


def _gaps(steps: Sequence[TaskTimes]) -> list[float]:
    return [(b.started - a.ended).total_seconds() * 1000 for a, b in pairwise(steps)]


async def _submitted(connection: Connection, request: bytes) -> str:
    status, body = await connection.send(request)
    if status >= 400:
        raise RuntimeError(f"{status} {body[:300]!r}")
    return str(json.loads(body)["id"])


def _named(what: str, figures: Figures) -> Figures:
    return {f"{what}_{name}_ms": value for name, value in figures.items()}
