"""What a benchmark can do with either of the two systems."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from benchmarks.load import Connection
from benchmarks.processes import Usage
from benchmarks.times import TaskTimes


class System(Protocol):
    """A started system that runs tasks which do nothing."""

    name: str

    def connection(self) -> Connection:
        """A new connection to where tasks are submitted."""
        ...

    def submission(self, connection: Connection, **more: Any) -> bytes:
        """The request that submits one task. `more`: what only our own API knows."""
        ...

    async def times(self, ids: Collection[str]) -> dict[str, TaskTimes]:
        """The times of those among `ids` that have ended."""
        ...

    def usage(self) -> Mapping[str, Usage]:
        """What each part of the system has used."""
        ...

    async def commits(self) -> Mapping[str, int]:
        """Transactions of each database since it began."""
        ...
