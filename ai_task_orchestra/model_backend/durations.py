"""Go's durations and the protocol's `keep_alive`."""

from __future__ import annotations

import math
import re

from ai_task_orchestra.model_backend.protocol import ProtocolError

FOREVER = math.inf
MAX_SECONDS = (2**63 - 1) / 1e9
"""Go counts nanoseconds in 64 bits: about 292 years."""

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def duration_seconds(text: str) -> float:
    """Seconds in a Go duration such as `5m`, `1h30m`, `-1s` or `0`.

    Raises:
        ProtocolError: 400, in Go's words.
    """
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    if unsigned == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(unsigned):
        part = _PART.match(unsigned, position)
        if part is None:
            break
        total += float(part[1]) * _UNIT_SECONDS[part[2]]
        position = part.end()
    if not unsigned or position != len(unsigned) or total > MAX_SECONDS:
        raise ProtocolError(400, f'time: invalid duration "{text[:64]}"')
    return -total if text.startswith("-") else total


def keep_alive_seconds(value: float | str | None) -> float | None:
    """How long a model stays loaded after its last request: None if unsaid, `FOREVER` for any negative value.

    Numbers are seconds, strings are Go durations.

    Raises:
        ProtocolError: 400, no duration.
    """
    if value is None:
        return None
    seconds = duration_seconds(value) if isinstance(value, str) else float(value)
    return FOREVER if seconds < 0 or seconds > MAX_SECONDS else seconds
