"""What happens to the product while clients use it: kills, a frozen worker, a database that is gone for a moment.

Each writes into the history when it begins and ends, and to which worker it happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from random import Random
from typing import Final, TypeVar

import psutil

from tests.histories.journal import Journal
from tests.histories.plan import Fault
from tests.histories.stack import LEASE_SECONDS, HistoryStack

T = TypeVar("T")

#: How long a fault waits for its victim: a running child, a part that is just being started again.
_SEARCH_SECONDS: Final = 6.0
_PAUSE_SECONDS: Final = 0.05


class Faults:
    """Does the faults of one history."""

    def __init__(self, stack: HistoryStack, journal: Journal, seed: int) -> None:
        self._stack, self._journal = stack, journal
        self._random = Random(f"faults {seed}")  # noqa: S311
        self._busy = {number: asyncio.Lock() for number in (0, 1)}

    async def do(self, fault: Fault) -> None:
        """Do it; a fault without a victim is written down as such."""
        match fault.name:
            case "kill_api":
                await self._kill_part(fault, "api")
            case "kill_prefect":
                await self._kill_part(fault, "prefect", "server")
            case "restart_postgres":
                await self._restart_postgres(fault)
            case "kill_worker":
                async with self._busy[fault.worker]:
                    await self._kill_worker(fault)
            case "kill_child":
                async with self._busy[fault.worker]:
                    await self._kill_child(fault)
            case "freeze_worker":
                async with self._busy[fault.worker]:
                    await self._freeze(fault)
            case _:
                raise ValueError(f"no such fault: {fault.name}")

    async def _kill_part(self, fault: Fault, *words: str) -> None:
        victim = await self._search(lambda: self._stack.child(*words))
        self._write(fault, victim)
        _send(victim, signal.SIGKILL)

    async def _restart_postgres(self, fault: Fault) -> None:
        """SIGQUIT is PostgreSQL's immediate stop: as after a crash, the next start recovers."""
        victim = await self._search(lambda: self._stack.child("-D", str(self._stack.home / "postgres")))
        self._write(fault, victim)
        _send(victim, signal.SIGQUIT)

    async def _kill_worker(self, fault: Fault) -> None:
        name, victim = await self._worker(fault) or ("", None)
        self._write(fault, victim, worker=name)
        _send(victim, signal.SIGKILL)

    async def _kill_child(self, fault: Fault) -> None:
        """The process that executes a run: the first one between a worker's template process and a step's program."""
        name, worker = await self._worker(fault) or ("", None)
        victim = await self._search(lambda: _running_child(worker)) if worker else None
        self._write(fault, victim, worker=name)
        _send(victim, signal.SIGKILL)

    async def _freeze(self, fault: Fault) -> None:
        """Stop the worker with everything below it for longer than its lease, then let it go on."""
        found = await self._worker(fault)
        if found is None:
            self._write(fault, None)
            return
        name, worker = found
        self._write(fault, worker, worker=name, moment="begin")
        frozen = _stop_family(worker)
        try:
            await asyncio.sleep(LEASE_SECONDS + fault.seconds)
        finally:
            self._write(fault, worker, worker=name, moment="end")
            self._random.shuffle(frozen)
            for process in frozen:
                _send(process, signal.SIGCONT)

    async def _worker(self, fault: Fault) -> tuple[str, psutil.Process] | None:
        """Name and process of the worker, once it runs a step if the fault wants that (it may never)."""
        found = await self._search(lambda: self._stack.worker(fault.worker))
        if found and fault.busy:
            await self._search(lambda: _running_child(found[1]))
        return found

    def _write(
        self, fault: Fault, victim: psutil.Process | None, *, worker: str | None = None, moment: str | None = None
    ) -> None:
        pid = victim.pid if victim else None
        self._journal.write("fault", name=fault.name, pid=pid, worker=worker, moment=moment)

    async def _search(self, find: Callable[[], T | None]) -> T | None:
        deadline = time.monotonic() + _SEARCH_SECONDS
        while (found := find()) is None and time.monotonic() < deadline:  # noqa: ASYNC110 - processes have no event
            await asyncio.sleep(_PAUSE_SECONDS)
        return found


def _running_child(worker: psutil.Process) -> psutil.Process | None:
    """A process of the worker that has a step's program below it."""
    with contextlib.suppress(psutil.Error):
        for process in worker.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("_exec.py" in " ".join(child.cmdline()) for child in process.children()):
                    return process
    return None


def _stop_family(root: psutil.Process) -> list[psutil.Process]:
    """Stop a process and everything below it, until nothing new is found."""
    stopped: list[psutil.Process] = []
    while True:
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            family = [root, *root.children(recursive=True)]
        fresh = [process for process in family if process not in stopped]
        if not fresh:
            return stopped
        for process in fresh:
            _send(process, signal.SIGSTOP)
        stopped += fresh


def _send(process: psutil.Process | None, number: int) -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if process.is_running():
                os.kill(process.pid, number)
