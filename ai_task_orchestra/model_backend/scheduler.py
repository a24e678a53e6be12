"""Which models are loaded: Ollama's rules for how many, for how long, and which one has to go.

- At most `max_loaded` at once. Requests for a loaded model never queue here; they wait for one of its slots.
- Loads happen one at a time, first come first served. At most `max_queue` wait for their turn, the next is refused.
- Another context length than the loaded one means loading anew.
- Who has to go: an idle model before a busy one, then the shortest keep-alive, then the name. A busy one is condemned:
  it goes as soon as it is idle. Requests that still find it may overtake the load that waits for it, as in Ollama;
  unlike there, their `keep_alive` can't save it.
- The last request's keep-alive counts; its time starts when the model is idle.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Generic, Protocol, TypeVar

from ai_task_orchestra.model_backend.durations import MAX_SECONDS
from ai_task_orchestra.model_backend.installed import InstalledModel
from ai_task_orchestra.model_backend.protocol import ProtocolError

log = logging.getLogger(__name__)

BUSY = "server busy, please try again.  maximum pending requests exceeded"
STOPPING = "the server is stopping"
MINIMUM_CONTEXT = 4


class Runner(Protocol):
    """What is asked of a loaded model's process."""

    @property
    def alive(self) -> bool:
        """False once it is known to be gone."""

    @property
    def memory_bytes(self) -> int:
        """What it occupies."""

    def kill(self) -> None:
        """End it; must not block."""

    async def wait(self) -> None:
        """Return when it is gone, for whatever reason."""


R = TypeVar("R", bound=Runner)


@dataclass(frozen=True)
class Limits:
    """The scheduler's numbers. `parallel`: requests one model answers at once."""

    max_loaded: int = 3
    max_queue: int = 512
    parallel: int = 1
    context_length: int = 4096
    keep_alive_seconds: float = 300.0


@dataclass(frozen=True)
class LoadedModel:
    """A line of `/api/ps`."""

    model: InstalledModel
    context_length: int
    memory_bytes: int
    expires_at: datetime


@dataclass(eq=False)
class _Resident(Generic[R]):
    """A model in memory."""

    model: InstalledModel
    context_length: int
    runner: R
    slots: asyncio.Semaphore
    keep_alive_seconds: float
    references: int = 0
    condemned: bool = False
    leaving: bool = False
    timer: asyncio.TimerHandle | None = None
    idle_since: datetime = field(default_factory=lambda: datetime.now(UTC))
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def as_loaded(self) -> LoadedModel:
        expires_at = _later(self.idle_since, self.keep_alive_seconds)
        return LoadedModel(self.model, self.context_length, self.runner.memory_bytes, expires_at)


@dataclass(frozen=True)
class Lease(Generic[R]):
    """The right to use a loaded model. Enter `slot` around the engine's work."""

    runner: R
    slot: asyncio.Semaphore
    context_length: int
    load_nanoseconds: int


class Scheduler(Generic[R]):
    """Loads models through `launch` and lends them out. Must be made and used inside one event loop."""

    def __init__(self, launch: Callable[[InstalledModel, int], Awaitable[R]], limits: Limits) -> None:
        self._launch = launch
        self._limits = limits
        self._residents: dict[str, _Resident[R]] = {}
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._loading: asyncio.Future[R] | None = None
        self._arriving: LoadedModel | None = None
        self._watchers: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def lease(
        self, model: InstalledModel, *, num_ctx: int | None = None, keep_alive_seconds: float | None = None
    ) -> AsyncIterator[Lease[R]]:
        """Have `model` loaded for the length of the block.

        Raises:
            ProtocolError: 503 when too many loads wait, 500 when the model can't be loaded.
        """
        started = time.perf_counter_ns()
        context_length = self._context_length(model, num_ctx)
        resident = self._usable(model.name, context_length)
        if resident is None:
            resident = await self._load_in_turn(model, context_length)
        self._join(resident, keep_alive_seconds)  # no await before this, or the model could be gone again
        try:
            load_nanoseconds = time.perf_counter_ns() - started
            yield Lease(resident.runner, resident.slots, resident.context_length, load_nanoseconds)
        finally:
            self._release(resident)

    def unload(self, model: InstalledModel) -> None:
        """Let the model go as soon as it is idle."""
        resident = self._residents.get(model.name)
        if resident is not None:
            self._condemn(resident)

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, the one that stays longest first; one being loaded with its file's size."""
        loaded = [resident.as_loaded() for resident in self._residents.values() if not resident.leaving]
        if self._arriving is not None:
            loaded.append(self._arriving)
        return sorted(loaded, key=lambda one: one.expires_at, reverse=True)

    async def close(self) -> None:
        """End every runner and refuse new ones; returns when all are gone."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        for resident in list(self._residents.values()):
            self._end(resident)
        while self._watchers:
            await asyncio.gather(*self._watchers, return_exceptions=True)

    def _context_length(self, model: InstalledModel, num_ctx: int | None) -> int:
        wanted = max(num_ctx or self._limits.context_length, MINIMUM_CONTEXT)
        return min(wanted, model.trained_context or wanted)

    def _usable(self, name: str, context_length: int) -> _Resident[R] | None:
        resident = self._residents.get(name)
        if resident is None or resident.leaving or not resident.runner.alive:
            return None
        return resident if resident.context_length == context_length else None

    async def _load_in_turn(self, model: InstalledModel, context_length: int) -> _Resident[R]:
        if (self._turn.locked() or self._waiting) and self._waiting >= self._limits.max_queue:
            raise ProtocolError(503, BUSY)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            while True:
                if self._closed:
                    raise ProtocolError(503, STOPPING)
                resident = self._usable(model.name, context_length)
                if resident is not None:
                    return resident
                in_the_way = self._in_the_way(model)
                if in_the_way is None:
                    return await self._load(model, context_length)
                self._condemn(in_the_way)
                await in_the_way.gone.wait()
        finally:
            self._turn.release()

    def _in_the_way(self, model: InstalledModel) -> _Resident[R] | None:
        """The model that must go before `model` can be loaded."""
        same = self._residents.get(model.name)
        if same is not None:
            return same
        if len(self._residents) < self._limits.max_loaded:
            return None
        return min(
            self._residents.values(),
            key=lambda one: (not one.leaving, one.references > 0, one.keep_alive_seconds, one.model.name),
        )

    async def _load(self, model: InstalledModel, context_length: int) -> _Resident[R]:
        """A cancelled request takes its load with it; the next one in the queue starts its own."""
        expires_at = _later(datetime.now(UTC), self._limits.keep_alive_seconds)
        self._arriving = LoadedModel(model, context_length, model.size_bytes, expires_at)
        self._loading = loading = asyncio.ensure_future(self._launch(model, context_length))
        try:
            return self._admit(model, context_length, await loading)
        except asyncio.CancelledError:
            if loading.done() and not loading.cancelled() and loading.exception() is None:
                # Loaded in the very moment in which nobody wanted it any more.
                self._end(self._admit(model, context_length, loading.result()))
            if self._closed:
                raise ProtocolError(503, STOPPING) from None
            raise
        finally:
            self._loading = self._arriving = None

    def _admit(self, model: InstalledModel, context_length: int, runner: R) -> _Resident[R]:
        slots = asyncio.Semaphore(self._limits.parallel)
        resident = _Resident(model, context_length, runner, slots, self._limits.keep_alive_seconds)
        self._residents[model.name] = resident
        watcher = asyncio.create_task(self._watch(resident))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return resident

    async def _watch(self, resident: _Resident[R]) -> None:
        """Strike the model off the list when its process is gone, expected or not."""
        await resident.runner.wait()
        if not resident.leaving:
            log.warning("runner_stopped", extra={"model": resident.model.name})
        resident.leaving = True
        self._stop_timer(resident)
        del self._residents[resident.model.name]
        resident.gone.set()

    def _join(self, resident: _Resident[R], keep_alive_seconds: float | None) -> None:
        resident.references += 1
        resident.idle_since = datetime.now(UTC)
        self._stop_timer(resident)
        if keep_alive_seconds is not None:
            resident.keep_alive_seconds = keep_alive_seconds

    def _release(self, resident: _Resident[R]) -> None:
        resident.references -= 1
        resident.idle_since = datetime.now(UTC)
        if resident.references or resident.leaving:
            return
        if resident.condemned or resident.keep_alive_seconds <= 0:
            self._end(resident)
        elif not math.isinf(resident.keep_alive_seconds):
            loop = asyncio.get_running_loop()
            resident.timer = loop.call_later(resident.keep_alive_seconds, self._end, resident)

    def _condemn(self, resident: _Resident[R]) -> None:
        resident.condemned = True
        resident.keep_alive_seconds = 0.0
        if not resident.references:
            self._end(resident)

    def _end(self, resident: _Resident[R]) -> None:
        self._stop_timer(resident)
        if not resident.leaving:
            resident.leaving = True
            resident.runner.kill()
            log.info("runner_ended", extra={"model": resident.model.name})

    @staticmethod
    def _stop_timer(resident: _Resident[R]) -> None:
        if resident.timer is not None:
            resident.timer.cancel()
            resident.timer = None


def _later(moment: datetime, seconds: float) -> datetime:
    return moment + timedelta(seconds=min(seconds, MAX_SECONDS))
