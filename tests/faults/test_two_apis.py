"""Two API processes on one database: a key counts for both, one leads, and the other takes over (F5, F6)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from api.leader import SILENT_SECONDS
from tests.support.fault_bench import FINAL, ApiProcess, FaultBench, new_mark
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TAKEOVER_SECONDS = 30


@pytest_asyncio.fixture(loop_scope="module")
async def pair(bench: FaultBench) -> AsyncIterator[list[ApiProcess]]:
    """Two APIs, the leading one first."""
    async with AsyncExitStack() as stack:
        both = await asyncio.gather(*(stack.enter_async_context(bench.api()) for _ in range(2)))

        def leading() -> list[ApiProcess]:
            return sorted(both, key=lambda api: -api.events("leader_elected")) if _elections(both) else []

        yield await wait_until(leading, description="one of them leads")


def _elections(apis: list[ApiProcess]) -> int:
    return sum(api.events("leader_elected") for api in apis)


async def test_fifty_posts_with_one_key_to_two_apis_make_one_task(bench: FaultBench, pair: list[ApiProcess]) -> None:
    mark = new_mark()
    answers = await asyncio.gather(*(pair[number % 2].post(mark, key=mark) for number in range(50)))
    told = [answer.status_code for answer in answers]
    assert told.count(201) == 1
    assert set(told) <= {200, 201, 409}
    task_id = await bench.task_of_mark(mark)
    assert {answer.json()["id"] for answer in answers if answer.is_success} == {task_id}
    async with bench.hand() as hand:
        await pair[1].reaches(str(task_id), "completed")
    assert hand.ran[str(task_id)] == 1
    assert len(await bench.prefect.all_runs(task_id)) == 1


async def test_a_frozen_or_killed_leader_is_replaced_and_nothing_is_done_twice(
    bench: FaultBench, pair: list[ApiProcess]
) -> None:
    first, second = pair
    ids: list[str] = []

    async def load(apis: list[ApiProcess], count: int = 6) -> None:
        ids.extend(await asyncio.gather(*(apis[number % len(apis)].accepted() for number in range(count))))

    await load(pair)
    assert _elections(pair) == 1
    # The first one freezes inside a transaction that has locked a task's row.
    mark = new_mark()
    inside = bench.database.hold(mark.encode(), b"COMMIT")
    unanswered = asyncio.create_task(first.post(mark, depends_on=[ids[0]]))
    await inside.reached.wait()
    first.signal(signal.SIGSTOP)
    await load([second])
    await wait_until(
        lambda: second.events("leader_elected"), timeout=TAKEOVER_SECONDS, description="the other one leads"
    )
    async with bench.hand() as hand:
        for task_id in ids:
            await second.reaches(task_id, *FINAL)
        first.signal(signal.SIGCONT)
        assert (await unanswered).json()["code"] == "storage_unavailable"
        assert await bench.task_of_mark(mark) is None
        await load(pair)
        second.kill()
        await wait_until(lambda: first.events("leader_elected") == 2, timeout=TAKEOVER_SECONDS, description="back")
        await load([first])
        for task_id in ids:
            assert (await first.reaches(task_id, *FINAL))["status"] == "completed"
        assert [hand.ran[task_id] for task_id in ids] == [1] * len(ids)
    for task_id in ids:
        assert len(await bench.prefect.all_runs(task_id)) == 1
    assert SILENT_SECONDS < TAKEOVER_SECONDS
