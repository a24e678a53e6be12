from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from ai_task_orchestra.stack.signals import SIGNALS, StopSignals
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def received_at(*times: float) -> StopSignals:
    clock = iter(times)
    signals = StopSignals(clock=lambda: next(clock))
    for _ in times:
        signals.receive()
    return signals


def test_no_signal_asks_for_nothing() -> None:
    signals = StopSignals()
    assert not signals.asked.is_set()
    assert not signals.now.is_set()


def test_signals_within_two_seconds_are_one_wish() -> None:
    signals = received_at(100.0, 100.0, 101.0, 102.0)
    assert signals.asked.is_set()
    assert not signals.now.is_set()


def test_a_later_one_means_now() -> None:
    assert received_at(100.0, 100.5, 102.1).now.is_set()


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_real_signal_is_a_wish_and_ends_nothing(number: signal.Signals) -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        await wait_until(signals.asked.is_set, description="the signal arrived")
        assert not signals.now.is_set()
    os.kill(os.getpid(), number)  # everything is stopped by now: it changes nothing
