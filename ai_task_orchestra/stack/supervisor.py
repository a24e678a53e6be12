"""All children of a stack: started in order, watched, stopped in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from ai_task_orchestra.stack.child import Backoff, ChildSpec, SupervisedChild
from ai_task_orchestra.stack.log_files import LogFile
from ai_task_orchestra.stack.orphans import OrphanSweep

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 2.0


class Supervisor:
    """Starts children, keeps them running, and ends them all.

    `say` gets a line for people whenever a child had to be started again. With `sweep`, processes that outlive the
    child which started them are ended too: only for a process that has no children of other origin.
    """

    def __init__(
        self,
        logs: Path,
        say: Callable[[str], None],
        *,
        backoff: Backoff | None = None,
        sweep: OrphanSweep | None = None,
    ) -> None:
        self._logs = logs
        self._say = say
        self._backoff = backoff or Backoff()
        self._sweep = sweep
        self._children: list[SupervisedChild] = []
        self._housekeeper: asyncio.Task[None] | None = None

    async def start(self, spec: ChildSpec) -> None:
        """Start a child and return once it is ready.

        Raises:
            StartError: it ended first, or took too long.
        """
        await self._child(spec).start()

    async def run(self, spec: ChildSpec) -> None:
        """Run a child that does one thing and ends.

        Raises:
            StartError: it failed, or took too long.
        """
        await self._child(spec).run_to_end()

    async def drop(self, name: str) -> None:
        """Stop the children of this name and forget them."""
        for child in [child for child in self._children if child.spec.name == name]:
            await child.stop(asyncio.Event())
            self._children.remove(child)

    async def stop(self, now: asyncio.Event, *, within_seconds: float = 0.0) -> None:
        """Stop all: by rank, then the last started first. Once `now` is set, the rest is killed at once.

        The last one (a database that writes everything down) may take what the others left of `within_seconds`.
        """
        begun = time.monotonic()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeper
        children = sorted(self._children, key=lambda child: child.spec.rank)[::-1]
        for child in children:
            left = within_seconds - (time.monotonic() - begun) if child is children[-1] else 0.0
            await child.stop(now, patience_seconds=max(child.spec.stop_seconds, left))
        self._children.clear()
        if self._sweep is not None:
            self._sweep.end_all()

    def pids(self) -> dict[str, int]:
        """The running children."""
        return {child.spec.name: child.pid for child in self._children if child.pid is not None}

    def log_of(self, name: str) -> LogFile:
        """The log of the children of this name."""
        return LogFile(self._logs / f"{name}.log")

    def _child(self, spec: ChildSpec) -> SupervisedChild:
        if self._housekeeper is None:
            self._housekeeper = asyncio.create_task(self._keep_house(), name="stack housekeeping")
        log = self.log_of(spec.name)
        log.rotate()
        child = SupervisedChild(spec, log, self._say, self._backoff)
        self._children.append(child)
        return child

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            for child in self._children:
                if child.log.shorten():
                    logger.info("log_shortened", extra={"child": child.spec.name})
            if self._sweep is not None:
                self._sweep.end_orphans(set(self.pids().values()))
