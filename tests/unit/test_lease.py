"""How long a worker may believe that its runs are still its own."""

from __future__ import annotations

import time

from ai_task_orchestra.lease import Lease, now


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_lease_that_was_never_renewed_is_not_held() -> None:
    assert not Lease(20).held


def test_it_is_held_for_a_part_of_what_the_api_grants() -> None:
    clock = Clock()
    lease = Lease(20, clock)
    lease.renew(1000)
    clock.seconds += 15.9
    assert lease.held
    clock.seconds += 0.2
    assert not lease.held


def test_news_that_come_late_do_not_shorten_it_and_old_ones_do_not_revive_it() -> None:
    clock = Clock()
    lease = Lease(20, clock)
    lease.renew(1000)
    lease.renew(990)
    assert lease.left == 16
    clock.seconds = 1060
    lease.renew(1001)
    assert not lease.held
    lease.renew(1059)
    assert lease.held


def test_the_clock_goes_on_as_time_does() -> None:
    before = now()
    time.sleep(0.01)
    assert 0.009 < now() - before < 60
