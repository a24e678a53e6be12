"""The lease of a worker on its runs, as the worker and its children see it.

The API takes a worker's runs away when its heartbeat has been missing for `ORCHESTRA_WORKER_LEASE_SECONDS`. Worker and
children count the same time from the last heartbeat that Prefect answered, and allow themselves a part of it only: they
have stopped before anybody else begins. Nobody has to tell them; a process that was frozen knows when it wakes up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

#: What is kept free of the lease's time for stopping everything.
MARGIN: Final = 0.2


def now() -> float:
    """Seconds on a clock that all processes of this machine share and that nobody sets.

    It stands still while the whole machine sleeps, and so does an API on the same machine: a laptop that was closed
    loses nothing.
    """
    return time.monotonic()


class Lease:
    """Held for a part of `lease_seconds` after the last time it was renewed; until then not at all."""

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = now) -> None:
        self.lease_seconds = lease_seconds
        self.renewed = -math.inf
        self._clock = clock

    def renew(self, at: float) -> None:
        """Somebody who decides about our runs heard of us after `at`; old news change nothing."""
        self.renewed = max(self.renewed, at)

    @property
    def left(self) -> float:
        """The seconds for which it is still held; negative once it is not."""
        return self.renewed + self.lease_seconds * (1 - MARGIN) - self._clock()

    @property
    def held(self) -> bool:
        return self.left > 0


#: The lease of the worker that executes the present run; None outside our workers.
OWN_LEASE: ContextVar[Lease | None] = ContextVar("orchestra_lease", default=None)
