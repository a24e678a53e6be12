"""What the worker's heartbeat does to its lease, and the lease to its runs."""

from __future__ import annotations

import asyncio
from typing import cast
from uuid import UUID, uuid4

import httpx
import pytest

from ai_task_orchestra.lease import Lease, now
from ai_task_orchestra.worker.execution import Execution
from ai_task_orchestra.worker.heartbeat import Heartbeat, LeaseKeeper
from ai_task_orchestra.worker.prefect_gateway import PrefectGateway
from tests.support.waiting import wait_until


def _status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://prefect.test")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code))


class FakeRun:
    def __init__(self) -> None:
        self.ended: list[str] = []
        self.told: list[float] = []

    def end(self, reason: str) -> None:
        self.ended.append(reason)

    def tell_lease(self, renewed: float) -> None:
        self.told.append(renewed)


class FakePrefect:
    """Takes heartbeats, or does as the test says."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.is_silent = False
        self.is_reachable = True
        self.beats = 0

    async def heartbeat(self, seconds: float) -> None:
        self.beats += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure

    async def reach(self, seconds: float) -> bool:
        return self.is_reachable


class Scene:
    def __init__(self, lease_seconds: float = 20.0) -> None:
        self.lease = Lease(lease_seconds)
        self.lease.renew(now())
        self.run, self.prefect = FakeRun(), FakePrefect()
        self.keeper = LeaseKeeper(self.lease, cast("dict[UUID, Execution]", {uuid4(): self.run}))
        self.heartbeat = Heartbeat(
            cast(PrefectGateway, self.prefect),
            self.keeper,
            seconds=0.01,
            lease_seconds=lease_seconds,
            sync=lambda: self.prefect.heartbeat(0),
            reach=self.prefect.reach,
        )

    async def beats(self, count: int) -> None:
        """Until so many more heartbeats were sent."""
        before = self.prefect.beats
        beating = asyncio.create_task(self.heartbeat.run())
        await wait_until(lambda: self.prefect.beats >= before + count, description="heartbeats")
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def test_each_heartbeat_renews_the_lease_and_the_children_hear_of_it() -> None:
    scene = Scene()
    before = scene.lease.renewed
    await scene.beats(3)
    assert scene.lease.renewed > before
    assert scene.lease.renewed == scene.run.told[-1]


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), _status(503), httpx.ReadTimeout("late")])
async def test_a_prefect_that_is_down_does_not_end_the_lease(failure: Exception) -> None:
    scene = Scene()
    before = scene.lease.renewed
    scene.prefect.failure = failure
    await scene.beats(3)
    assert scene.lease.renewed > before


async def test_a_prefect_that_hangs_does_not_end_the_lease() -> None:
    scene = Scene(lease_seconds=0.4)
    scene.prefect.is_silent = True
    before = scene.lease.renewed
    await scene.beats(20)  # the first of them has been given up by then
    assert scene.lease.renewed > before


async def test_a_prefect_that_cannot_be_reached_does_not_renew_the_lease() -> None:
    scene = Scene()
    before = scene.lease.renewed
    scene.prefect.failure, scene.prefect.is_reachable = httpx.ConnectTimeout("late"), False
    await scene.beats(3)
    assert scene.lease.renewed == before


async def test_a_prefect_that_does_not_know_us_does_not_renew_the_lease() -> None:
    scene = Scene()
    before = scene.lease.renewed
    scene.prefect.failure = _status(403)
    await scene.beats(3)
    assert scene.lease.renewed == before


async def test_the_runs_are_ended_when_the_lease_is_over() -> None:
    scene = Scene(lease_seconds=0.2)
    keeping = asyncio.create_task(scene.keeper.run())
    assert not scene.run.ended
    await wait_until(lambda: scene.run.ended, description="the run is ended")
    assert set(scene.run.ended) == {"lease lost"}
    keeping.cancel()


async def test_a_heartbeat_after_a_long_sleep_does_not_save_the_runs() -> None:
    scene = Scene()
    scene.lease.renewed -= 60
    await scene.beats(1)
    assert scene.run.ended == ["lease lost"]
    assert scene.lease.held
