"""The rules for loaded models, with scripted runners."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_task_orchestra.model_backend.durations import FOREVER
from ai_task_orchestra.model_backend.installed import InstalledModel
from ai_task_orchestra.model_backend.protocol import ProtocolError
from ai_task_orchestra.model_backend.scheduler import Limits, Scheduler
from tests.support.waiting import wait_until
from tests.unit.model_backend.fakes import FakeLauncher, FakeRunner, installed

A, B, C = installed("a:1"), installed("b:1"), installed("c:1")


@pytest.fixture
async def launcher() -> FakeLauncher:
    return FakeLauncher()


def schedule(launcher: FakeLauncher, **limits: float) -> Scheduler[FakeRunner]:
    return Scheduler(launcher.launch, Limits(**limits))  # type: ignore[arg-type]


async def use(scheduler: Scheduler[FakeRunner], model: InstalledModel = A, **options: Any) -> FakeRunner:
    async with scheduler.lease(model, **options) as lease:
        return lease.runner


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_loaded_model_is_used_again(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    assert await use(scheduler) is await use(scheduler)
    assert launcher.loads == ["a:1"]
    await scheduler.close()


async def test_requests_at_once_for_a_cold_model_load_it_once(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    runners = await asyncio.gather(*(use(scheduler) for _ in range(5)))
    assert len(set(map(id, runners))) == 1
    await scheduler.close()


async def test_an_idle_model_goes_before_a_busy_one_however_short_that_is_kept(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=2)
    await use(scheduler, B, keep_alive_seconds=FOREVER)
    async with scheduler.lease(A, keep_alive_seconds=1):
        await use(scheduler, C)
        assert [runner.model.name for runner in launcher.alive] == ["a:1", "c:1"]
    await scheduler.close()


async def test_of_idle_models_the_shortest_kept_goes_then_the_first_by_name(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=2)
    await use(scheduler, A, keep_alive_seconds=100)
    await use(scheduler, B, keep_alive_seconds=50)
    await use(scheduler, C, keep_alive_seconds=100)
    assert [runner.model.name for runner in launcher.alive] == ["a:1", "c:1"]
    await use(scheduler, B)
    assert [runner.model.name for runner in launcher.alive] == ["c:1", "b:1"]
    await scheduler.close()


async def test_a_load_waits_for_a_busy_model_and_requests_for_that_one_overtake_it(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=1)
    async with scheduler.lease(A):
        waiting = asyncio.create_task(use(scheduler, B))
        await settle()
        await use(scheduler, A, keep_alive_seconds=FOREVER)  # overtakes, but can't save its model
        assert not waiting.done()
        assert launcher.loads == ["a:1"]
    await waiting
    assert launcher.loads == ["a:1", "b:1"]
    assert launcher.most_alive == 1
    await scheduler.close()


async def test_loads_come_in_the_order_of_their_requests(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=1)
    async with scheduler.lease(A):
        waiting = []
        for model in (C, B, C):
            waiting.append(asyncio.create_task(use(scheduler, model)))
            await settle()
    await asyncio.gather(*waiting)
    assert launcher.loads == ["a:1", "c:1", "b:1", "c:1"]
    await scheduler.close()


async def test_only_loads_count_against_the_queue(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=1, max_queue=1)
    async with scheduler.lease(A):
        loading, queued = (asyncio.create_task(use(scheduler, model)) for model in (B, C))
        await settle()
        with pytest.raises(ProtocolError, match="server busy") as caught:
            await use(scheduler, B)
        assert caught.value.status == 503
        await use(scheduler, A)
    await asyncio.gather(loading, queued)
    await scheduler.close()


async def test_a_request_that_gives_up_gives_its_place_in_the_queue_up(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=1, max_queue=1)
    async with scheduler.lease(A):
        loading, queued = (asyncio.create_task(use(scheduler, model)) for model in (B, C))
        await settle()
        queued.cancel()
        await settle()
        another = asyncio.create_task(use(scheduler, C))
        await settle()
        assert not another.done()
    await asyncio.gather(loading, another)
    await scheduler.close()


async def test_another_context_length_means_loading_anew(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, context_length=4096)
    await use(scheduler)
    await use(scheduler, num_ctx=4096)
    assert len(launcher.loads) == 1
    await use(scheduler, num_ctx=2048)
    await use(scheduler)
    assert [runner.context_length for runner in launcher.started] == [4096, 2048, 4096]
    assert launcher.most_alive == 1
    await scheduler.close()


async def test_the_context_length_stays_within_what_the_model_was_trained_for(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    small = installed("small:1", trained=512)
    assert (await use(scheduler, small)).context_length == 512
    assert (await use(scheduler, small, num_ctx=100_000)).context_length == 512
    assert (await use(scheduler, small, num_ctx=1)).context_length == 4
    await scheduler.close()


async def test_keep_alive_0_ends_the_model_after_the_request_and_not_before(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    async with scheduler.lease(A):
        runner = await use(scheduler, A, keep_alive_seconds=0)
        assert runner.alive
    assert runner.killed
    assert scheduler.loaded() == []
    await scheduler.close()


async def test_an_idle_model_goes_when_its_time_is_over_and_a_request_starts_it_again(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    runner = await use(scheduler, keep_alive_seconds=0.05)
    async with scheduler.lease(A):
        await asyncio.sleep(0.1)  # the time itself is what is tested
        assert runner.alive
    await wait_until(lambda: runner.killed, timeout=2, description="expired")
    await scheduler.close()


async def test_a_request_that_says_nothing_keeps_what_was_said_before(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    await use(scheduler, keep_alive_seconds=FOREVER)
    await use(scheduler)
    assert scheduler.loaded()[0].expires_at.year > 2300
    await use(scheduler, keep_alive_seconds=60)
    left = scheduler.loaded()[0].expires_at - datetime.now(UTC)
    assert 59 < left.total_seconds() <= 60
    await scheduler.close()


async def test_unloading_waits_for_the_last_request(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    async with scheduler.lease(A) as lease:
        scheduler.unload(A)
        assert lease.runner.alive
    assert lease.runner.killed
    scheduler.unload(B)  # not loaded: nothing to do
    await scheduler.close()


async def test_a_crashed_runner_is_forgotten_and_loaded_again(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    runner = await use(scheduler)
    runner.crash()
    assert await use(scheduler) is not runner
    await scheduler.close()


async def test_a_runner_that_crashes_while_a_load_waits_for_it_makes_room(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=1)
    async with scheduler.lease(A) as lease:
        waiting = asyncio.create_task(use(scheduler, B))
        await settle()
        lease.runner.crash()
        await waiting
    await scheduler.close()


async def test_a_failed_load_is_the_requests_error_and_takes_no_room(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=1)
    launcher.fail = ProtocolError(500, "unable to load model")
    with pytest.raises(ProtocolError, match="unable to load"):
        await use(scheduler)
    assert scheduler.loaded() == []
    assert (await use(scheduler, B)).alive
    await scheduler.close()


async def test_a_load_nobody_waits_for_is_given_up_and_the_next_in_line_goes_on(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, max_loaded=1)
    launcher.gate.clear()
    first = asyncio.create_task(use(scheduler, A))
    second = asyncio.create_task(use(scheduler, B))
    await settle()
    first.cancel()
    launcher.gate.set()
    await second
    assert launcher.loads == ["b:1"]
    assert [model.model.name for model in scheduler.loaded()] == ["b:1"]
    await scheduler.close()


async def test_a_model_loaded_in_the_moment_of_giving_up_does_not_stay(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    request = asyncio.create_task(use(scheduler))
    while not launcher.started:  # noqa: ASYNC110 - the iteration of the loop counts
        await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert launcher.alive == []
    await settle()
    assert scheduler.loaded() == []
    await scheduler.close()


async def test_loaded_lists_the_longest_kept_first_and_one_on_its_way(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, keep_alive_seconds=100)
    await use(scheduler, A, keep_alive_seconds=50)
    await use(scheduler, B, keep_alive_seconds=FOREVER)
    launcher.gate.clear()
    loading = asyncio.create_task(use(scheduler, C))
    await settle()
    assert [(one.model.name, one.memory_bytes) for one in scheduler.loaded()] == [
        ("b:1", 5000),
        ("c:1", 1000),  # its file, as long as nothing better is known
        ("a:1", 5000),
    ]
    launcher.gate.set()
    await loading
    await scheduler.close()


async def test_slots_bound_what_one_model_does_at_once(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher, parallel=2)
    async with AsyncExitStack() as stack:
        leases = [await stack.enter_async_context(scheduler.lease(A)) for _ in range(3)]
        await stack.enter_async_context(leases[0].slot)
        await stack.enter_async_context(leases[1].slot)
        assert leases[2].slot.locked()
    await scheduler.close()


async def test_closing_ends_runners_and_loads_and_refuses_new_ones(launcher: FakeLauncher) -> None:
    scheduler = schedule(launcher)
    runner = await use(scheduler, A)
    launcher.gate.clear()
    loading, queued = (asyncio.create_task(use(scheduler, model)) for model in (B, C))
    await settle()
    await scheduler.close()
    assert runner.killed
    for task in (loading, queued, asyncio.create_task(use(scheduler, A))):
        with pytest.raises(ProtocolError, match="stopping"):
            await task
    assert launcher.alive == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), max_loaded=st.integers(1, 2))
def test_whatever_happens_limits_hold_and_everyone_is_served(seed: int, max_loaded: int) -> None:
    """Requests, cancellations, crashes and failed loads in random order."""

    async def run() -> None:
        chance = random.Random(seed)  # noqa: S311 - reproducible on purpose
        launcher = FakeLauncher()
        scheduler = schedule(launcher, max_loaded=max_loaded)

        async def request(model: InstalledModel, num_ctx: int) -> None:
            async with scheduler.lease(model, num_ctx=num_ctx, keep_alive_seconds=chance.choice([0, 5, None])) as lease:
                assert (lease.runner.model, lease.runner.context_length) == (model, num_ctx)
                assert not lease.runner.killed
                async with lease.slot:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                assert not lease.runner.killed

        tasks = []
        for _ in range(30):
            tasks.append(asyncio.create_task(request(chance.choice([A, B, C]), chance.choice([128, 256]))))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            event = chance.randrange(8)
            if event == 0:
                chance.choice(tasks).cancel()
            elif event == 1 and launcher.alive:
                chance.choice(launcher.alive).crash()
            elif event == 2:
                launcher.fail = ProtocolError(500, "unable to load model")
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        unexpected = [one for one in outcomes if not isinstance(one, ProtocolError | asyncio.CancelledError | None)]
        assert unexpected == []
        assert launcher.most_alive <= max_loaded
        await scheduler.close()
        assert launcher.alive == []

    asyncio.run(run())
