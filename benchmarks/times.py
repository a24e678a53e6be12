"""Times of tasks, and the few statistics that the tables show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median


@dataclass(frozen=True)
class TaskTimes:
    """When a task was created, first ran and ended, each by the clock of this machine."""

    created: datetime
    started: datetime
    ended: datetime

    @property
    def start_ms(self) -> float:
        """Created until running, in milliseconds."""
        return (self.started - self.created).total_seconds() * 1000


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest."""
    return {
        "p50": percentile(values, 0.5),
        "p95": percentile(values, 0.95),
        "p99": percentile(values, 0.99),
        "max": max(values),
    }


def per_second(times: Sequence[TaskTimes]) -> float:
    """Tasks finished per second, from the first one's creation to the last one's end."""
    span = max(each.ended for each in times) - min(each.created for each in times)
    return len(times) / span.total_seconds()


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several runs of one part, the median of each figure."""
    return {name: median(run[name] for run in runs if name in run) for name in runs[0]}
