"""The fence: what is published outside Prefect comes from the attempt that counts, and from no other.

A worker that was frozen or cut off may wake up after its runs were taken away and another attempt has begun. Results
go through Prefect, where the API ignores such an attempt. What a step publishes itself, an output file, is fenced here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ai_task_orchestra.errors import StaleAttemptError
from ai_task_orchestra.lease import OWN_LEASE, Lease, now

IsCurrent = Callable[[], Awaitable[bool]]


class Fence:
    """Of one attempt. Ask `confirm` before publishing, and `check` at the last moment, from any thread."""

    def __init__(self, is_current: IsCurrent, lease_seconds: float, clock: Callable[[], float] = now) -> None:
        """`is_current`: whether Prefect says that the attempt runs, and has always run since it began."""
        self._is_current = is_current
        self._clock = clock
        self._answer = Lease(lease_seconds, clock)
        self._own = OWN_LEASE.get()

    async def confirm(self) -> None:
        """See that this attempt counts. While Prefect does not answer, this waits.

        Raises:
            StaleAttemptError: it does not (any more).
        """
        asked = self._clock()
        if not await self._is_current():
            raise StaleAttemptError
        self._answer.renew(asked)
        self.check()

    def check(self) -> None:
        """See that nobody can have taken the task away since `confirm`.

        Raises:
            StaleAttemptError: too much time has passed.
        """
        if not self._answer.held or (self._own is not None and not self._own.held):
            raise StaleAttemptError
