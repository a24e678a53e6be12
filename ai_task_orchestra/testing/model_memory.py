"""Which models are loaded: Ollama's rules for loading, waiting, unloading and keep-alive, without any weights.

- A request for a loaded model waits for one of its `num_parallel` slots, without limit.
- Loads happen one at a time in order of arrival; more than `max_queue` of them waiting: `ServerBusyError` (503).
- A model that does not fit pushes out others: idle ones first, then the shortest keep-alive, then by name.
  A busy victim is waited for; requests for it that arrive meanwhile still get in.
- A request with another `num_ctx` than the loaded one reloads the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from ai_task_orchestra.testing.scripted_models import ScriptedModel

DEFAULT_NUM_CTX: Final = 4096
# Ollama writes "never" as the longest duration a Go int64 of nanoseconds holds.
FOREVER_SECONDS: Final = (2**63 - 1) / 1e9

_GO_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class ServerBusyError(Exception):
    """server busy, please try again.  maximum pending requests exceeded"""


class ModelTooLargeError(Exception):
    """The model does not fit even alone."""


@dataclass
class Statistics:
    """What happened so far.

    `swaps` are loads that had to push another model out first. `generations` counts answers begun (chat and embed
    included), `running` those being made now, `cancelled` requests whose client left before the end.
    """

    loads: int = 0
    reloads: int = 0
    swaps: int = 0
    unloads: int = 0
    generations: int = 0
    running: int = 0
    running_peak: int = 0
    completed: int = 0
    cancelled: int = 0


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, or on its way there (`ready` not set)."""

    model: ScriptedModel
    num_ctx: int
    keep_alive_seconds: float
    slots: asyncio.Semaphore
    users: int = 0
    used_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    expiry: asyncio.TimerHandle | None = None

    @property
    def expires_at(self) -> datetime:
        """When it is unloaded unless it is used again."""
        return self.used_at + timedelta(seconds=min(self.keep_alive_seconds, FOREVER_SECONDS))


class ModelMemory:
    """The loaded models of one server. `memory_bytes` None is endless."""

    def __init__(
        self, *, memory_bytes: int | None, max_loaded_models: int, max_queue: int, num_parallel: int, keep_alive: float
    ) -> None:
        self.statistics = Statistics()
        self._memory_bytes = memory_bytes
        self._max_loaded = max_loaded_models
        self._max_queue = max_queue
        self._num_parallel = num_parallel
        self._keep_alive = keep_alive
        self._loaded: dict[str, LoadedModel] = {}
        self._pending = 0
        self._loading = asyncio.Lock()
        self._changed = asyncio.Condition()

    def loaded(self) -> list[LoadedModel]:
        """As `/api/ps` lists them: the longest expiry first."""
        return sorted(self._loaded.values(), key=lambda entry: entry.expires_at, reverse=True)

    @contextlib.asynccontextmanager
    async def use(
        self, model: ScriptedModel, *, num_ctx: int | None, keep_alive: float | None, load_seconds: float | None = None
    ) -> AsyncIterator[int]:
        """Hold a slot of the loaded model; yields the nanoseconds that loading took.

        Raises:
            ServerBusyError: too many loads are waiting.
            ModelTooLargeError: the memory is too small for this model.
        """
        began = time.perf_counter_ns()
        # A request that names no num_ctx means the default, not whatever is loaded.
        entry = await self._acquire(model, num_ctx or min(DEFAULT_NUM_CTX, model.context_length), load_seconds)
        load_ns = time.perf_counter_ns() - began
        try:
            async with entry.slots:
                yield load_ns
        finally:
            await self._release(entry, self._keep_alive if keep_alive is None else keep_alive)

    async def unload(self, model: ScriptedModel) -> None:
        """Unload once nobody uses it."""
        entry = self._loaded.get(model.full_name)
        if entry is not None:
            entry.keep_alive_seconds = 0.0
            await self._unload_if_idle(entry)

    def close(self) -> None:
        """Stop the keep-alive timers."""
        for entry in self._loaded.values():
            if entry.expiry is not None:
                entry.expiry.cancel()
        self._loaded.clear()

    async def _acquire(self, model: ScriptedModel, num_ctx: int, load_seconds: float | None) -> LoadedModel:
        entry = self._usable(model, num_ctx)
        if entry is None:
            if self._pending >= self._max_queue:
                raise ServerBusyError
            self._pending += 1
            try:
                async with self._loading:
                    entry = self._usable(model, num_ctx) or await self._load(model, num_ctx, load_seconds)
                    self._enter(entry)
            finally:
                self._pending -= 1
            return entry
        self._enter(entry)
        return entry

    def _usable(self, model: ScriptedModel, num_ctx: int) -> LoadedModel | None:
        entry = self._loaded.get(model.full_name)
        usable = entry is not None and entry.ready.is_set() and entry.num_ctx == num_ctx
        return entry if usable else None

    def _enter(self, entry: LoadedModel) -> None:
        entry.users += 1
        if entry.expiry is not None:
            entry.expiry.cancel()
            entry.expiry = None

    async def _load(self, model: ScriptedModel, num_ctx: int, load_seconds: float | None) -> LoadedModel:
        """Make room, then load; only one at a time comes here."""
        if self._memory_bytes is not None and model.size_bytes > self._memory_bytes:
            raise ModelTooLargeError
        name = model.full_name
        old = self._loaded.get(name)
        if old is not None:
            self.statistics.reloads += 1
            await self._push_out(old)
        swapped = False
        while (victim := self._victim(model)) is not None:
            swapped = True
            await self._push_out(victim)
        entry = LoadedModel(
            model=model,
            num_ctx=num_ctx,
            keep_alive_seconds=self._keep_alive,
            slots=asyncio.Semaphore(self._num_parallel),
        )
        self._loaded[name] = entry
        try:
            await asyncio.sleep(model.load_seconds if load_seconds is None else load_seconds)
        except asyncio.CancelledError:
            del self._loaded[name]
            raise
        self.statistics.loads += 1
        self.statistics.swaps += swapped
        entry.ready.set()
        return entry

    def _victim(self, model: ScriptedModel) -> LoadedModel | None:
        """The model to push out next, or None if `model` fits."""
        occupied = sum(entry.model.size_bytes for entry in self._loaded.values())
        fits = self._memory_bytes is None or occupied + model.size_bytes <= self._memory_bytes
        if fits and len(self._loaded) < self._max_loaded:
            return None
        entries = self._loaded.values()
        return min(entries, key=lambda e: (e.users > 0, e.keep_alive_seconds, e.model.full_name), default=None)

    async def _push_out(self, entry: LoadedModel) -> None:
        async with self._changed:
            while self._loaded.get(entry.model.full_name) is entry:
                entry.keep_alive_seconds = 0.0
                if not entry.users:
                    self._drop(entry)
                    return
                await self._changed.wait()

    async def _release(self, entry: LoadedModel, keep_alive: float) -> None:
        entry.users -= 1
        entry.used_at = datetime.now(UTC)
        entry.keep_alive_seconds = keep_alive
        if not entry.users and self._loaded.get(entry.model.full_name) is entry:
            if keep_alive <= 0:
                self._drop(entry)
            elif math.isfinite(keep_alive):
                loop = asyncio.get_running_loop()
                entry.expiry = loop.call_later(keep_alive, self._expire, entry)
        await self._announce()

    async def _unload_if_idle(self, entry: LoadedModel) -> None:
        if not entry.users and self._loaded.get(entry.model.full_name) is entry:
            self._drop(entry)
        await self._announce()

    def _expire(self, entry: LoadedModel) -> None:
        if not entry.users and self._loaded.get(entry.model.full_name) is entry:
            self._drop(entry)

    def _drop(self, entry: LoadedModel) -> None:
        if entry.expiry is not None:
            entry.expiry.cancel()
        del self._loaded[entry.model.full_name]
        self.statistics.unloads += 1

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def parse_keep_alive(value: object) -> float | None:
    """Seconds; infinity for "never"; None where the request does not say. Ollama's own rules.

    Raises:
        ValueError: neither a number nor a Go duration; the message is Ollama's.
    """
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return math.inf if value < 0 else float(value)
    if not isinstance(value, str):
        raise ValueError(f"time: invalid duration {value!r}")
    digits = value.lstrip("+-")
    parts = _GO_DURATION.findall(digits)
    if digits != "0" and (not parts or "".join(number + unit for number, unit in parts) != digits):
        raise ValueError(f'time: invalid duration "{value}"')
    if value.startswith("-"):
        return math.inf
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
