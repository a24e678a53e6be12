"""PostgreSQL stopped at once, again and again, while tasks are accepted and run (F9)."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from ai_task_orchestra.stack import postgres as embedded
from api.migrate import upgrade
from tests.support.fault_bench import FINAL, ApiProcess, FaultBench, new_mark
from tests.support.prefect_bench import PrefectBench
from tests.support.servers import free_port, open_folder, process
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = 3


class OwnPostgres:
    """A PostgreSQL server that only this test uses."""

    def __init__(self, home: Path) -> None:
        self.server = embedded.prepare(home, free_port())
        self._log = home / "postgres.log"
        self._running = ExitStack()
        self._process: subprocess.Popen[bytes]

    async def start(self) -> None:
        options = embedded.popen_account(self.server.user)
        started = process(self.server.argv, log=self._log, stop=signal.SIGINT, cwd="/", **options)
        self._process = self._running.enter_context(started)
        await self.server.wait_ready()

    async def stop_at_once(self) -> None:
        """No farewell to anybody, and a recovery at the next start."""
        self._process.send_signal(signal.SIGQUIT)
        await wait_until(lambda: self._process.poll() is not None, description="PostgreSQL has ended")

    def close(self) -> None:
        self._running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def postgres() -> AsyncIterator[OwnPostgres]:
    with open_folder() as home:
        own = OwnPostgres(home)
        try:
            await own.start()
            await own.server.create_databases()
            yield own
        finally:
            own.close()


async def _client(api: ApiProcess, told: set[tuple[int, str]], over: asyncio.Event) -> list[str]:
    """Posts one task after the other, each until it is accepted, as a client with patience does; the tasks' ids."""
    ids = []
    while not over.is_set():
        mark = new_mark()

        async def accepted(mark: str = mark) -> str | None:
            answer = await api.post(mark, key=mark)
            if answer.is_success:
                return str(answer.json()["id"])
            told.add((answer.status_code, answer.json()["code"]))
            return None

        ids.append(await wait_until(accepted, timeout=60, description="a task is accepted"))
        await asyncio.sleep(0.2)
    return ids


async def test_what_was_accepted_is_done_once_though_postgresql_keeps_going_away(
    postgres: OwnPostgres, prefect_api_url: str, tmp_path: Path
) -> None:
    dice = random.Random(9)  # noqa: S311
    told: set[tuple[int, str]] = set()
    url = postgres.server.url("orchestra")
    await upgrade(url)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=prefect_api_url, timeout=60))
        prefect = await PrefectBench.prepare(http)
        bench = await stack.enter_async_context(FaultBench(tmp_path, prefect, url).opened())
        api = await stack.enter_async_context(bench.api())
        hand = await stack.enter_async_context(bench.hand(seconds=0.05))
        over = asyncio.Event()
        client = asyncio.create_task(_client(api, told, over))
        for _ in range(ROUNDS):
            await asyncio.sleep(dice.uniform(0.3, 0.8))
            await postgres.stop_at_once()
            ready = await api.http.get(api.http.base_url.join("/ready"))
            assert (ready.status_code, "database" in ready.json()["missing"]) == (503, True)
            listed = await api.http.get("/tasks")
            assert (listed.status_code, listed.json()["code"]) == (503, "storage_unavailable")
            await asyncio.sleep(dice.uniform(0, 2))
            await postgres.start()
        over.set()
        ids = await client
        assert len(set(ids)) == len(ids) > ROUNDS
        for task_id in ids:
            assert (await api.reaches(task_id, *FINAL))["status"] == "completed"
        assert [hand.ran[task_id] for task_id in ids] == [1] * len(ids)
        assert told <= {(503, "storage_unavailable"), (409, "idempotency_busy")}
        assert (503, "storage_unavailable") in told
        assert (await api.http.get(api.http.base_url.join("/ready"))).status_code == 200
