"""Which announced state changes are looked at, against a mirror that does as the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from ai_task_orchestra import protocol
from api.gateway import PrefectGateway
from api.hints import Hints
from api.live_store import Mirrored
from api.mirror import Mirror
from api.prefect_types import FlowRun, RunEvent, RunState
from tests.support.waiting import wait_until

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class FakeMirror:
    rows: dict[UUID, Mirrored] = field(default_factory=dict)
    runs: dict[UUID, RunState] = field(default_factory=dict)
    read: list[set[UUID]] = field(default_factory=list)

    async def known(self, run_ids: Collection[UUID]) -> dict[UUID, Mirrored]:
        return {run_id: self.rows[run_id] for run_id in run_ids if run_id in self.rows}

    async def reconcile(self, run_ids: Collection[UUID]) -> dict[UUID, FlowRun]:
        self.read.append(set(run_ids))
        return {run_id: _run(run_id, self.runs[run_id]) for run_id in run_ids if run_id in self.runs}


class Scene:
    """Hints that hear what the test says, until the scene is left."""

    def __init__(self) -> None:
        self.mirror = FakeMirror()
        self.heard: asyncio.Queue[RunEvent] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[RunEvent]]:
        async def listen() -> AsyncIterator[RunEvent]:
            while True:
                yield await self.heard.get()

        yield listen()

    @contextlib.asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        hints = Hints(cast(PrefectGateway, self), cast(Mirror, self.mirror))
        task = asyncio.create_task(hints.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def say(self, name: str, run_id: UUID | None = None, state_id: UUID | None = None) -> UUID:
        run_id = run_id or uuid4()
        self.heard.put_nowait(RunEvent(run_id, state_id or uuid4(), NOON, name))
        return run_id

    async def looked_at(self, run_id: UUID) -> None:
        await wait_until(lambda: any(run_id in ids for ids in self.mirror.read), description="the run was read")


def _run(run_id: UUID, state: RunState) -> FlowRun:
    return FlowRun(run_id, uuid4(), None, None, state, NOON, None, None, None, None, {}, {}, False)


def _state(name: str, at: datetime = NOON) -> RunState:
    return RunState(uuid4(), name.upper(), name, None, at)


async def test_what_we_create_and_release_ourselves_is_not_read_back() -> None:
    scene = Scene()
    created_in_a_burst = uuid4()
    scene.mirror.rows[created_in_a_burst] = Mirrored(state_id=None, worker=None)
    async with scene.playing():
        own = [scene.say(name) for name in (protocol.STATE_QUEUED, protocol.STATE_HELD)]
        scene.say(protocol.STATE_QUEUED, created_in_a_burst)
        await scene.looked_at(scene.say("Running"))
    read = set().union(*scene.mirror.read)
    assert not read & {*own, created_in_a_burst}


async def test_a_run_that_its_worker_gives_back_is_read() -> None:
    scene = Scene()
    run_id = uuid4()
    scene.mirror.rows[run_id] = Mirrored(uuid4(), worker="gpu-1")
    async with scene.playing():
        scene.say(protocol.STATE_QUEUED, run_id)
        await scene.looked_at(run_id)


async def test_a_run_born_in_prefect_is_read() -> None:
    scene = Scene()
    async with scene.playing():
        await scene.looked_at(scene.say("Scheduled"))


async def test_what_is_mirrored_already_is_not_read_again() -> None:
    scene = Scene()
    run_id, state_id = uuid4(), uuid4()
    scene.mirror.rows[run_id] = Mirrored(state_id, worker="gpu-1")
    async with scene.playing():
        scene.say("Running", run_id, state_id)
        await scene.looked_at(scene.say("Running"))
    assert not any(run_id in ids for ids in scene.mirror.read)


async def test_a_change_that_can_not_be_read_yet_is_looked_for_again() -> None:
    scene = Scene()
    run_id, early = uuid4(), _state("Pending", NOON - timedelta(seconds=1))
    scene.mirror.runs[run_id] = early
    async with scene.playing():
        scene.say("Running", run_id)
        await wait_until(lambda: len(scene.mirror.read) > 2, description="it was read several times")
        scene.mirror.runs[run_id] = _state("Running", NOON)
        await wait_until(lambda: len(scene.mirror.read) > 3, description="and once more")
        before = len(scene.mirror.read)
        await scene.looked_at(scene.say("Running"))
    assert len(scene.mirror.read) <= before + 2


async def test_what_happens_during_a_look_is_read_together_in_the_next_one() -> None:
    scene = Scene()
    reading, go_on = asyncio.Event(), asyncio.Event()
    read_at_once = scene.mirror.reconcile

    async def read_slowly(run_ids: Collection[UUID]) -> dict[UUID, Any]:
        reading.set()
        await go_on.wait()
        return await read_at_once(run_ids)

    scene.mirror.reconcile = read_slowly  # type: ignore[method-assign]
    async with scene.playing():
        first = _state("Running")
        scene.mirror.runs[scene.say("Running", state_id=first.id)] = first
        await reading.wait()
        busy = {scene.say("Running") for _ in range(5)}
        go_on.set()
        await wait_until(lambda: len(scene.mirror.read) > 1, description="a second look")
    assert scene.mirror.read[1] == busy
