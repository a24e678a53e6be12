"""The order in which the tasks of a batch are accepted. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from ai_task_orchestra.errors import DependencyCycleError

#: A message names at most this many tasks of a circle.
NAMED: Final = 50
MAX_SHOWN: Final = 80


def in_order(waits_for: Sequence[Sequence[int]], labels: Sequence[str]) -> list[int]:
    """Positions such that each comes after those it waits for, else as given.

    Args:
        waits_for: for each position the positions it waits for, each once.
        labels: what messages call them.

    Raises:
        DependencyCycleError: some wait for each other in a circle, which the message names in order.
    """
    missing = [len(upstream) for upstream in waits_for]
    dependents: list[list[int]] = [[] for _ in waits_for]
    for position, upstream in enumerate(waits_for):
        for other in upstream:
            dependents[other].append(position)
    ready = [position for position, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        order.append(position := heapq.heappop(ready))
        for dependent in dependents[position]:
            missing[dependent] -= 1
            if missing[dependent] == 0:
                heapq.heappush(ready, dependent)
    if len(order) < len(waits_for):
        left = {position for position, count in enumerate(missing) if count > 0}
        raise DependencyCycleError(_sentence([labels[position] for position in _circle(waits_for, left)]))
    return order


def _circle(waits_for: Sequence[Sequence[int]], left: set[int]) -> list[int]:
    """A circle among `left`, each of which waits for another of them: walk until a place comes again."""
    path: list[int] = []
    seen: dict[int, int] = {}
    position = min(left)
    while position not in seen:
        seen[position] = len(path)
        path.append(position)
        position = next(other for other in waits_for[position] if other in left)
    return path[seen[position] :]


def _sentence(circle: list[str]) -> str:
    shown = [label[:MAX_SHOWN] for label in circle[:NAMED]]
    rest = len(circle) - len(shown)
    names = [*shown, *([f"{rest} more"] if rest else []), shown[0]]
    return f"The tasks depend on each other in a circle: {' → '.join(names)} (each waits for the next)."
