"""Counting wrong keys and requests: exact, forgetful, and of bounded size."""

from __future__ import annotations

import ipaddress
import uuid

import pytest

from api.throttle import MAX_ADDRESSES, RequestRate, WrongKeys


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestWrongKeys:
    def test_those_over_the_limit_are_told_until_the_minute_is_over(self, clock: Clock) -> None:
        wrong = WrongKeys(2, clock=clock)
        assert [wrong.record("192.0.2.1") for _ in range(3)] == [0, 0, 60]
        clock.now += 45
        assert wrong.record("192.0.2.1") == 15
        assert wrong.record("192.0.2.2") == 0
        clock.now += 15
        assert wrong.record("192.0.2.1") == 0

    def test_addresses_without_number_take_no_more_room_and_are_slowed_together(self, clock: Clock) -> None:
        wrong = WrongKeys(2, clock=clock)
        first = int(ipaddress.ip_address("10.0.0.0"))
        for number in range(MAX_ADDRESSES + 500):
            wrong.record(str(ipaddress.ip_address(first + number)))
        assert len(wrong) == MAX_ADDRESSES + 1
        assert wrong.record("203.0.113.9") > 0
        assert wrong.record("10.0.0.0") == 0  # among the first, so still counted by itself

    @pytest.mark.parametrize(
        ("one", "other", "together"),
        [
            ("2001:db8:1:2:3::1", "2001:db8:1:2:ffff::9", True),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
            ("::ffff:192.0.2.1", "192.0.2.1", True),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
            (None, "no address", True),
        ],
    )
    def test_an_ipv6_network_counts_as_one(self, clock: Clock, one: str | None, other: str, together: bool) -> None:
        wrong = WrongKeys(1, clock=clock)
        wrong.record(one)
        assert (wrong.record(other) > 0) is together


class TestRequestRate:
    def test_a_key_gets_its_number_in_every_minute_and_not_one_more(self, clock: Clock) -> None:
        rate, key = RequestRate(clock=clock), uuid.uuid4()
        admitted = []
        for _ in range(600):
            if rate.admit(key, 5) == 0:
                admitted.append(clock.now)
            clock.now += 0.5
        assert len(admitted) == 5 * 5
        assert all(later - earlier >= 60 for earlier, later in zip(admitted, admitted[5:], strict=False))

    def test_the_wait_it_names_is_enough_and_no_longer_than_needed(self, clock: Clock) -> None:
        rate, key = RequestRate(clock=clock), uuid.uuid4()
        rate.admit(key, 2)
        clock.now += 10
        rate.admit(key, 2)
        clock.now += 20
        wait = rate.admit(key, 2)
        assert wait == 30
        clock.now += wait - 0.001
        assert rate.admit(key, 2) > 0
        clock.now += 0.001
        assert rate.admit(key, 2) == 0

    def test_keys_are_counted_apart(self, clock: Clock) -> None:
        rate = RequestRate(clock=clock)
        assert [rate.admit(uuid.uuid4(), 1) for _ in range(3)] == [0, 0, 0]
