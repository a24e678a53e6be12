"""An API that is asked to stop: what is under way is finished, nothing new is begun, and it ends in time (F13)."""

from __future__ import annotations

import asyncio
import signal
import socket

import httpx
import pytest

from tests.support.fault_bench import ApiProcess, FaultBench, new_mark
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXIT_SECONDS = 30


def _refused(api: ApiProcess) -> bool:
    try:
        socket.create_connection((api.http.base_url.host, api.http.base_url.port or 0), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


async def _ended(api: ApiProcess) -> int:
    await wait_until(lambda: api.process.poll() is not None, timeout=EXIT_SECONDS, description="the API has ended")
    return int(api.process.returncode)


async def test_sigterm_lets_a_post_finish_and_refuses_new_connections(bench: FaultBench) -> None:
    mark = new_mark()
    slow = bench.database.hold(mark.encode(), b"COMMIT")
    async with bench.api() as api:
        under_way = asyncio.create_task(api.post(mark, depends_on=[await api.accepted()]))
        await slow.reached.wait()
        api.signal(signal.SIGTERM)
        await wait_until(lambda: _refused(api), description="new connections are refused")
        slow.release()
        answer = await under_way
        assert (answer.status_code, answer.json()["id"]) == (201, await bench.task_of_mark(mark))
        assert await _ended(api) == 0


async def test_a_database_that_says_nothing_keeps_nobody_and_a_second_signal_is_no_harm(bench: FaultBench) -> None:
    mark = new_mark()
    stuck = bench.database.hold(mark.encode(), b"COMMIT")
    async with bench.api() as api:
        wanted = {"depends_on": [await api.accepted()]}
        under_way = asyncio.create_task(api.post(mark, key=mark, **wanted))
        await stuck.reached.wait()
        bench.database.hold(b"")  # from here on it hears nothing from PostgreSQL
        api.signal(signal.SIGTERM)
        await wait_until(lambda: _refused(api), description="it stops")
        api.signal(signal.SIGTERM)
        assert await _ended(api) == 0
        told = (await asyncio.gather(under_way, return_exceptions=True))[0]
        assert isinstance(told, httpx.TransportError) or told.status_code >= 500
        assert "Traceback" not in api.log.read_text()
    await bench.database.break_connections()
    bench.heal()
    async with bench.api() as api:
        assert (await api.post(mark, key=mark, **wanted)).status_code == 201
