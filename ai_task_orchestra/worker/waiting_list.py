"""What Prefect said would be next: believed for a moment, so that in a burst not every claim needs a poll of its own.

A poll costs Prefect's server as much as a claim: it also writes down that queues and deployments were looked at.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

from ai_task_orchestra.worker.prefect_gateway import Candidate

# How many runs beyond the free slots are asked for while there is a crowd, and how long the answer is believed.
AHEAD: Final = 8
BELIEVED_SECONDS: Final = 0.25


class WaitingList:
    """The rest of Prefect's last answer, most urgent first.

    A claim proves that a run is still there to be had. That nothing more urgent has come is what is believed: until
    the answer is old, or an event says otherwise. Within a priority whatever comes later stands behind.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: deque[Candidate] = deque()
        self._until = 0.0

    def __bool__(self) -> bool:
        return bool(self._runs)

    def replace(self, runs: Iterable[Candidate]) -> None:
        """A new answer: these stand behind those that are being claimed."""
        self._runs = deque(runs)
        self._until = self._clock() + BELIEVED_SECONDS

    def take(self, most: int) -> list[Candidate]:
        """The next runs, at most so many; none once they are not to be believed any more."""
        if self._clock() >= self._until:
            self._runs.clear()
        return [self._runs.popleft() for _ in range(min(most, len(self._runs)))]

    def overtaken_by(self, priority: int) -> None:
        """A run of this priority has become due: one that is more urgent makes the answer worthless."""
        if self._runs and priority > self._runs[0].priority:
            self._runs.clear()

    def withdraw(self, run_id: UUID) -> None:
        """This run was cancelled: Prefect would let it be claimed all the same."""
        self._runs = deque(run for run in self._runs if run.id != run_id)
