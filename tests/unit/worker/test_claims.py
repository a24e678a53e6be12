"""When and what the claim loop claims, against a Prefect and children that do as the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest

from ai_task_orchestra.worker.child_pool import ChildPool
from ai_task_orchestra.worker.claims import ClaimLoop
from ai_task_orchestra.worker.execution import Execution
from ai_task_orchestra.worker.prefect_gateway import Candidate, PrefectGateway
from tests.support.waiting import wait_until


class FakePrefect:
    """Hands out `waiting` in order; `refused` are claimed by somebody else, `unanswered` claims get no answer."""

    def __init__(self) -> None:
        self.waiting: list[UUID] = []
        self.refused: set[UUID] = set()
        self.unanswered: dict[UUID, bool] = {}
        self.limits: list[int] = []
        self.failure: Exception | None = None

    async def candidates(self, limit: int) -> list[Candidate]:
        self.limits.append(limit)
        if self.failure:
            raise self.failure
        return [Candidate(run, None, {}) for run in self.waiting[:limit]]

    async def claim(self, run: Candidate) -> bool:
        self.waiting.remove(run.id)
        if run.id in self.unanswered:
            raise httpx.ReadTimeout("late")
        return run.id not in self.refused

    async def claimed_after_all(self, run: Candidate) -> bool:
        return self.unanswered[run.id]


class FakePool:
    ready = 10

    def check_templates(self) -> None:
        pass


class FakeExecution:
    finished = False

    def __init__(self, run: Candidate, started: list[UUID]) -> None:
        self.id = run.id
        self._started = started
        self.done = asyncio.Event()

    async def execute(self, release: Callable[[], None]) -> None:
        self._started.append(self.id)
        await self.done.wait()
        release()


class Scene:
    def __init__(self, limit: int, poll_seconds: float = 600.0) -> None:
        self.prefect, self.pool = FakePrefect(), FakePool()
        self.started: list[UUID] = []
        self.may_claim = True
        self.loop = ClaimLoop(
            cast(PrefectGateway, self.prefect),
            cast(ChildPool, self.pool),
            lambda run: cast(Execution, FakeExecution(run, self.started)),
            limit=limit,
            poll_seconds=poll_seconds,
            may_claim=lambda: self.may_claim,
        )

    def end(self, run: UUID) -> None:
        cast(Any, self.loop.executions[run]).done.set()

    async def started_are(self, runs: list[UUID]) -> None:
        await wait_until(lambda: self.started == runs, timeout=5, description="the right runs were started")


@contextlib.asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[Scene]:
    task = asyncio.create_task(scene.loop.run())
    await wait_until(lambda: scene.prefect.limits, description="the first poll")
    yield scene
    scene.loop.stop()
    await task
    for run in list(scene.loop.executions):
        scene.end(run)
    assert await scene.loop.drained(5)


async def test_an_announced_run_is_claimed_though_it_is_committed_only_later() -> None:
    async with running(Scene(limit=1)) as scene:
        run = uuid4()
        polls = len(scene.prefect.limits)
        scene.loop.announce(run)
        await wait_until(lambda: len(scene.prefect.limits) > polls, description="a look that finds nothing")
        scene.prefect.waiting.append(run)
        await scene.started_are([run])


async def test_a_free_slot_is_filled_in_order_and_only_the_free_ones_are_asked_for() -> None:
    scene = Scene(limit=2)
    scene.prefect.waiting = runs = [uuid4() for _ in range(4)]
    runs = list(runs)
    async with running(scene):
        await scene.started_are(runs[:2])
        assert scene.prefect.limits == [2]
        scene.end(runs[1])
        await scene.started_are(runs[:3])
        assert scene.prefect.limits == [2, 1]


async def test_no_run_is_claimed_that_no_child_is_ready_for() -> None:
    scene = Scene(limit=4, poll_seconds=0.01)
    scene.pool.ready = 0
    scene.prefect.waiting = [uuid4()]
    task = asyncio.create_task(scene.loop.run())
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not scene.prefect.limits
    scene.loop.stop()
    await task


async def test_nothing_is_claimed_while_the_lease_is_not_held() -> None:
    scene = Scene(limit=1, poll_seconds=0.01)
    scene.may_claim = False
    scene.prefect.waiting = [uuid4()]
    task = asyncio.create_task(scene.loop.run())
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not scene.prefect.limits
    scene.may_claim = True
    await wait_until(lambda: scene.started, description="the run is claimed once it is held again")
    scene.loop.stop()
    scene.end(scene.started[0])
    await task


async def test_what_another_worker_claimed_is_passed_over() -> None:
    scene = Scene(limit=1)
    first, second = scene.prefect.waiting = [uuid4(), uuid4()]
    scene.prefect.refused = {first}
    async with running(scene):
        await scene.started_are([second])


@pytest.mark.parametrize("taken", [True, False])
async def test_an_unanswered_claim_is_executed_only_if_it_was_taken(taken: bool) -> None:
    scene = Scene(limit=1)
    first, second = scene.prefect.waiting = [uuid4(), uuid4()]
    scene.prefect.unanswered = {first: taken}
    async with running(scene):
        if taken:
            await scene.started_are([first])
            scene.end(first)
        await scene.started_are([first, second] if taken else [second])


def _status(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError(
        "", request=httpx.Request("POST", "http://prefect.test"), response=httpx.Response(code)
    )


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), _status(503), _status(403)])
async def test_it_goes_on_when_prefect_answers_again(failure: Exception) -> None:
    scene = Scene(limit=1)
    scene.prefect.failure = failure
    async with running(scene):
        run = uuid4()
        scene.prefect.waiting = [run]
        scene.prefect.failure = None
        await scene.started_are([run])
