"""An attempt whose task was taken away publishes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_task_orchestra.errors import StaleAttemptError
from ai_task_orchestra.lease import OWN_LEASE, Lease
from flows.fence import Fence
from flows.outputs import resolve_output, write_output
from tests.support.steps import step_context


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def own(clock: Clock) -> Iterator[Lease]:
    """The worker's lease, renewed just now."""
    lease = Lease(20, clock)
    lease.renew(clock())
    token = OWN_LEASE.set(lease)
    yield lease
    OWN_LEASE.reset(token)


def fence_of(clock: Clock, *answers: bool) -> Fence:
    waiting = list(answers)

    async def is_current() -> bool:
        return waiting.pop(0)

    return Fence(is_current, 20, clock)


async def test_the_attempt_that_counts_may_publish(clock: Clock) -> None:
    fence = fence_of(clock, True)
    await fence.confirm()
    clock.seconds += 15
    fence.check()


async def test_nothing_is_published_unasked(clock: Clock) -> None:
    with pytest.raises(StaleAttemptError):
        fence_of(clock).check()


async def test_a_run_that_prefect_gave_up_publishes_nothing(clock: Clock) -> None:
    with pytest.raises(StaleAttemptError):
        await fence_of(clock, False).confirm()


async def test_an_answer_from_before_a_long_sleep_does_not_count(clock: Clock) -> None:
    fence = fence_of(clock, True)
    await fence.confirm()
    clock.seconds += 60
    with pytest.raises(StaleAttemptError):
        fence.check()


async def test_a_child_whose_worker_has_no_heartbeat_publishes_nothing_whatever_prefect_says(
    clock: Clock, own: Lease
) -> None:
    fence = fence_of(clock, True, True)
    await fence.confirm()
    clock.seconds += 60
    with pytest.raises(StaleAttemptError):
        await fence.confirm()


async def test_a_sleep_right_before_the_rename_leaves_the_file_as_it_was(tmp_path: Path, clock: Clock) -> None:
    settings = step_context(tmp_path).settings
    place = resolve_output("x.txt", settings)
    write_output(place, b"of the attempt that counts", tenant="default")
    fence = fence_of(clock, True)
    await fence.confirm()
    clock.seconds += 60
    with pytest.raises(StaleAttemptError):
        write_output(place, b"stale", tenant="default", check=fence.check)
    assert (tmp_path / "outputs" / "x.txt").read_bytes() == b"of the attempt that counts"
    assert not list((tmp_path / "outputs").glob("*.part"))
