from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from ai_task_orchestra.server_clock import SLACK, TOLERANCE, ServerClock


def told(seconds: float) -> str:
    """The header of a server whose clock is ahead of ours by so much."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def ahead(clock: ServerClock) -> float:
    return (clock.now() - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize("seconds", [3600, 60, -60, -3600])
def test_a_server_whose_clock_differs_is_believed(seconds: float) -> None:
    clock = ServerClock()
    clock.hear(told(seconds))
    assert seconds - SLACK.total_seconds() < ahead(clock) <= seconds + 1


@pytest.mark.parametrize("seconds", [0, -1, -4])
def test_a_header_a_little_old_proves_nothing(seconds: float) -> None:
    clock = ServerClock()
    clock.hear(told(seconds))
    assert abs(ahead(clock)) < 1
    assert abs(seconds) < TOLERANCE.total_seconds()


def test_a_server_ahead_of_us_by_seconds_is_believed_too() -> None:
    clock = ServerClock()
    clock.hear(told(3))
    assert ahead(clock) > 1


def test_a_clock_that_was_put_right_counts_from_the_next_answer_on() -> None:
    clock = ServerClock()
    clock.hear(told(3600))
    clock.hear(told(0))
    assert abs(ahead(clock)) < 1


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sat, 99 Nov 2026 04:00:00 GMT"])
def test_what_is_no_date_tells_nothing(date: str | None) -> None:
    clock = ServerClock()
    clock.hear(told(3600))
    clock.hear(date)
    assert ahead(clock) > 3000
