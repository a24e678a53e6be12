"""Slowing down who guesses keys, and keys that ask too often. In memory, per process, of bounded size."""

from __future__ import annotations

import ipaddress
import time
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

WINDOW_SECONDS: Final = 60.0
#: Addresses counted one by one; all others of the same minute share one count.
MAX_ADDRESSES: Final = 10_000
#: An IPv6 network hands out at least this much to each of its customers.
_IPV6_PREFIX: Final = 64


class WrongKeys:
    """Counts wrong keys for each address in windows of a minute.

    Right keys are never held back: behind one address there may be many people, and one of them a broken script.
    That is safe because keys can't be guessed: generated ones have 130 random bits, and a server that other machines
    can reach does not start with a short one. Counting spares the log, and tells the script to slow down.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._until, self._counts = 0.0, dict[str, int]()

    def record(self, address: str | None) -> float:
        """Count a wrong key. 0, or for how many seconds `address` should stay away."""
        now = self._clock()
        if now >= self._until:
            self._until, self._counts = now + WINDOW_SECONDS, {}
        known = _network(address)
        if known not in self._counts and len(self._counts) >= MAX_ADDRESSES:
            known = "others"
        count = self._counts[known] = self._counts.get(known, 0) + 1
        return self._until - now if count > self._per_minute else 0.0

    def __len__(self) -> int:
        """How many counts are held."""
        return len(self._counts)


def _network(address: str | None) -> str:
    """Who is counted together: an IPv4 address, an IPv6 network."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if parsed.version == 4 or parsed.ipv4_mapped is not None:
        return str(getattr(parsed, "ipv4_mapped", None) or parsed)
    return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))


class RequestRate:
    """The requests of each limited key within the last minute. What is refused does not count."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[UUID, deque[float]] = {}

    def admit(self, key_id: UUID, per_minute: int) -> float:
        """0 and the request counts; or in how many seconds the next one will be admitted."""
        now = self._clock()
        times = self._times.setdefault(key_id, deque())
        while times and times[0] <= now - WINDOW_SECONDS:
            times.popleft()
        if len(times) >= per_minute:
            return times[len(times) - per_minute] + WINDOW_SECONDS - now
        times.append(now)
        return 0.0
