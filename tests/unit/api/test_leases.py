"""When a worker counts as lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from api.leases import LeaseBook
from api.prefect_types import Worker

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Watch:
    """A lease book of 20 s with a clock that only we move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.beats: dict[str, datetime] = {}
        self.book = LeaseBook(20, clock=lambda: self.now)

    def beat(self, *names: str) -> None:
        for name in names:
            self.beats[name] = self.beats.get(name, NOON) + timedelta(seconds=5)

    def look(self) -> set[str]:
        return self.book.look(Worker(name, at) for name, at in self.beats.items())

    def pass_time(self, seconds: float, *beating: str) -> set[str]:
        """Look every second; the workers named beat all the time."""
        lost: set[str] = set()
        for _ in range(int(seconds)):
            self.now += 1
            self.beat(*beating)
            lost = self.look()
        return lost


def test_a_worker_that_beats_is_never_lost() -> None:
    watch = Watch()
    watch.beat("a")
    assert watch.pass_time(120, "a") == set()


def test_a_worker_that_stops_is_lost_after_its_lease_and_not_before() -> None:
    watch = Watch()
    watch.beat("a", "b")
    watch.pass_time(30, "a", "b")
    assert watch.pass_time(20, "a") == set()
    assert watch.pass_time(1, "a") == {"b"}


def test_a_worker_that_comes_back_has_a_new_lease() -> None:
    watch = Watch()
    watch.beat("a")
    assert watch.pass_time(25) == {"a"}
    assert watch.pass_time(1, "a") == set()
    assert watch.pass_time(20) == set()


def test_a_heartbeat_from_long_ago_is_judged_by_our_own_watching() -> None:
    watch = Watch()
    watch.beats["a"] = NOON - timedelta(days=1)
    assert watch.look() == set()
    assert watch.pass_time(19) == set()
    assert watch.pass_time(3) == {"a"}


def test_an_outage_begins_every_lease_anew() -> None:
    watch = Watch()
    watch.beat("a")
    watch.pass_time(19)
    watch.book.interrupted()
    assert watch.pass_time(20) == set()
    assert watch.pass_time(2) == {"a"}


def test_a_pause_of_our_own_begins_every_lease_anew() -> None:
    watch = Watch()
    watch.beat("a")
    watch.pass_time(5)
    watch.now += 3600
    assert watch.look() == set()
    assert watch.pass_time(10) == set()
