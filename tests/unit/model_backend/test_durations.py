from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.model_backend.durations import FOREVER, duration_seconds, keep_alive_seconds
from ai_task_orchestra.model_backend.protocol import ProtocolError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("100ms", 0.1),
        ("2µs", 2e-6),
        ("2us", 2e-6),
        ("7ns", 7e-9),
        ("0", 0),
        ("-0", 0),
        ("+3s", 3),
        ("-1m", -60),
    ],
)
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-", "5", "5 m", "m", "1d", "soon", "5m!", "1e3s", "99999999h", "٣s5"])
def test_what_go_would_refuse_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="invalid duration") as caught:
        duration_seconds(text)
    assert caught.value.status == 400


def test_keep_alive_numbers_are_seconds_and_negative_ones_mean_for_ever() -> None:
    assert keep_alive_seconds(None) is None
    assert keep_alive_seconds(0) == 0
    assert keep_alive_seconds("0") == 0
    assert keep_alive_seconds(90) == 90
    assert keep_alive_seconds("1m") == 60
    assert keep_alive_seconds(-1) is FOREVER
    assert keep_alive_seconds("-5m") is FOREVER
    assert keep_alive_seconds(1e300) is FOREVER


@given(st.text(alphabet="0123456789.hmsuµn+-", max_size=12))
def test_any_text_is_a_duration_or_a_protocol_error(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        assert math.isfinite(duration_seconds(text))
