"""Prefect in memory: `api.gateway.PrefectGateway` for fast tests, with a worker's deeds and faults.

`tests/contracts/test_prefect_gateway.py` runs one suite against this and a real Prefect, so that it can't drift.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ai_task_orchestra import protocol
from api.gateway import PAGE
from api.prefect_http import PrefectUnreachableError
from api.prefect_types import (
    CANCELLED,
    CANCELLING,
    FINAL_STATES,
    PENDING,
    RUNNING,
    SCHEDULED,
    Deployment,
    FlowRun,
    LogPage,
    NewRun,
    RunEvent,
    RunFilter,
    RunLog,
    RunState,
    StateAnswer,
    Worker,
)
from tests.support.graph_double import GraphDouble


@dataclass
class Stop:
    """A place at which calls of a method stay for ever: what a process that is killed there leaves behind."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)


class PrefectDouble(GraphDouble):
    """One pool's worth of Prefect."""

    def __init__(self, pool: str = "pool") -> None:
        super().__init__()
        self.pool = pool
        self.template = "work"
        self.known: dict[UUID, FlowRun] = {}
        self.tags: dict[UUID, tuple[str, ...]] = {}
        self.history: dict[UUID, list[RunState]] = {}
        self.deployments: dict[str, Deployment] = {}
        self.beats: dict[str, datetime] = {}
        self.lines: list[tuple[UUID, RunLog]] = []
        self.is_down = False
        self.hears_events = True
        #: Seconds between a new run's event and its commit, and between a read and its answer.
        self.commit_seconds = 0.0
        self.answer_seconds = 0.0
        #: Seconds that each call waits before and after its work: random ones make random interleavings.
        self.pause: Callable[[], float] | None = None
        #: Set once a call stands at a stop.
        self.stopped = asyncio.Event()
        self.calls: list[str] = []
        self._reports: dict[UUID, Mapping[str, Any]] = {}
        self._stops: dict[tuple[str, str], Stop] = {}
        self._lost: dict[str, int] = {}
        self._subscribers: list[asyncio.Queue[RunEvent]] = []
        self.deployment_id = str(self.deploy_now(self.template).id)

    # Faults.

    def stop(self, method: str, when: str) -> Stop:
        """Let calls of `method` stay for ever, `before` or `after` they have done their work."""
        return self._stops.setdefault((method, when), Stop())

    def lose_replies(self, method: str, times: int) -> None:
        """Let `method` do its work `times` times without anybody hearing of it."""
        self._lost[method] = times

    def go_on(self) -> None:
        """Take all stops and lost replies away; who stands at a stop stays there."""
        self._stops.clear()
        self._lost.clear()
        self.stopped.clear()

    @property
    def is_shaky(self) -> bool:
        """Whether a call may stay without an answer."""
        return bool(self._stops) or any(self._lost.values())

    @contextlib.asynccontextmanager
    async def _call(self, method: str) -> AsyncIterator[None]:
        self.calls.append(method)
        await asyncio.sleep(self.pause() if self.pause else 0)
        if self.is_down:
            raise PrefectUnreachableError("Prefect is down", sent=False)
        await self._stay(method, "before")
        yield
        await self._stay(method, "after")
        if self.pause:
            await asyncio.sleep(self.pause())
        if self._lost.get(method, 0) > 0:
            self._lost[method] -= 1
            raise PrefectUnreachableError("the reply was lost", sent=True)

    async def _stay(self, method: str, when: str) -> None:
        stop = self._stops.get((method, when))
        if stop is not None:
            stop.reached.set()
            self.stopped.set()
            await asyncio.Event().wait()

    # The gateway.

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def deployment(self, name: str) -> Deployment | None:
        async with self._call("deployment"):
            return self.deployments.get(name)

    async def deployment_by_id(self, deployment_id: UUID) -> Deployment | None:
        async with self._call("deployment_by_id"):
            return self._deployment(deployment_id)

    async def flow_name(self, flow_id: UUID) -> str | None:
        async with self._call("flow_name"):
            return next((known.name for known in self.deployments.values() if known.flow_id == flow_id), None)

    async def create_run(self, deployment_id: UUID, run: NewRun) -> FlowRun | None:
        async with self._call("create_run"):
            deployment = self._deployment(deployment_id)
            if deployment is None:
                return None
            for present in self.known.values():
                if (present.flow_id, present.idempotency_key) == (deployment.flow_id, run.idempotency_key):
                    return present
            state = _state(run.state_type, run.state_name, run.state_message, run.scheduled_time, None)
            made = self._add(deployment, run.idempotency_key, state, run)
            if self.commit_seconds:
                del self.known[made.id]
                await asyncio.sleep(self.commit_seconds)
                self.known[made.id] = made
            return made

    async def propose(
        self,
        run_id: UUID,
        state_type: str,
        *,
        name: str | None = None,
        message: str | None = None,
        scheduled_time: datetime | None = None,
        transition_id: UUID | None = None,
        force: bool = False,
    ) -> StateAnswer | None:
        async with self._call("propose"):
            run = self.known.get(run_id)
            if run is None:
                return None
            state = _state(state_type, name, message, scheduled_time, transition_id)
            return self._orchestrate(run, state, force=force)

    async def set_parameters(self, run_id: UUID, parameters: Mapping[str, Any], *, tags: Collection[str]) -> None:
        async with self._call("set_parameters"):
            if run_id in self.known:
                self.known[run_id] = replace(self.known[run_id], parameters=dict(parameters))
                self.tags[run_id] = tuple(tags)

    async def delete_run(self, run_id: UUID) -> None:
        async with self._call("delete_run"):
            self.known.pop(run_id, None)

    async def runs(self, ids: Collection[UUID]) -> dict[UUID, FlowRun]:
        async with self._call("runs"):
            assert len(ids) <= PAGE
            found = {run_id: self.known[run_id] for run_id in ids if run_id in self.known}
            await asyncio.sleep(self.answer_seconds)
            return found

    async def states(self, run_id: UUID) -> list[RunState]:
        async with self._call("states"):
            return list(self.history.get(run_id, ()))

    async def find_runs(self, which: RunFilter, *, offset: int = 0) -> list[FlowRun]:
        async with self._call("find_runs"):
            found = [run for run in self.known.values() if _matches(run, which)]
            return sorted(found, key=lambda run: run.id, reverse=True)[offset : offset + PAGE]

    async def reports(self, run_ids: Collection[UUID]) -> dict[UUID, Mapping[str, Any]]:
        async with self._call("reports"):
            return {run_id: self._reports[run_id] for run_id in run_ids if run_id in self._reports}

    async def write_report(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        async with self._call("write_report"):
            self._reports[run_id] = report

    async def workers(self, pool: str) -> list[Worker]:
        async with self._call("workers"):
            return [Worker(name, at) for name, at in self.beats.items()] if pool == self.pool else []

    async def logs(self, run_ids: Collection[UUID], *, limit: int, offset: int) -> LogPage:
        async with self._call("logs"):
            return LogPage([line for run_id, line in self.lines if run_id in run_ids][offset : offset + limit])

    async def problem(self, pool: str) -> str | None:
        if self.is_down:
            return "Prefect is down"
        return None if pool == self.pool else f"there is no work pool {pool!r}"

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[RunEvent]]:
        queue: asyncio.Queue[RunEvent] = asyncio.Queue()
        if self.is_down:
            raise PrefectUnreachableError("Prefect is down", sent=False)
        self._subscribers.append(queue)

        async def listen() -> AsyncIterator[RunEvent]:
            while True:
                yield await queue.get()

        try:
            yield listen()
        finally:
            self._subscribers.remove(queue)

    # A worker's and an operator's deeds, as `tests.support.prefect_bench.PrefectBench` has them.

    def deploy_now(self, name: str) -> Deployment:
        return self.deployments.setdefault(name, Deployment(uuid.uuid4(), uuid.uuid4(), name, self.pool))

    async def deploy(self, template: str) -> str:
        return str(self.deploy_now(template).id)

    async def run(self, run_id: str) -> dict[str, Any] | None:
        run = self.known.get(UUID(run_id))
        return None if run is None else _as_json(run) | {"tags": list(self.tags[run.id])}

    async def all_runs(self, task_id: str | None = None) -> list[dict[str, Any]]:
        found = [_as_json(run) for run in self.known.values()]
        return [run for run in found if task_id is None or (run["idempotency_key"] or "").startswith(f"{task_id}:")]

    async def due(self, limit: int = 50) -> list[str]:
        now = datetime.now(UTC)
        found = [
            run
            for run in self.known.values()
            if run.state.type == SCHEDULED and (run.state.scheduled_time or now) <= now
        ]
        found.sort(key=lambda run: (-protocol.priority_of_queue(run.work_queue), run.state.timestamp))
        return [str(run.id) for run in found][:limit]

    async def set(self, run_id: str, kind: str, *, force: bool = False, **state: Any) -> dict[str, Any]:
        run = self.known[UUID(run_id)]
        before = self.known[run.id].state
        new = _state(kind, state.get("name"), state.get("message"), None, None)
        answer = self._orchestrate(run, new, force=force)
        status = "ACCEPT" if answer.accepted else "REJECT" if answer.state else "ABORT"
        return {"status": status, "before": before.name}

    async def claim(self, run_id: str, worker: str = "w1") -> bool:
        answer = await self.set(run_id, PENDING, message=protocol.claim_message(worker))
        return bool(answer["status"] == "ACCEPT")

    async def try_claim(self, run_id: str) -> bool:
        return UUID(run_id) in self.known and await self.claim(run_id)

    async def start(self, run_id: str, worker: str = "w1") -> None:
        assert await self.claim(run_id, worker)
        key = UUID(run_id)
        pid = protocol.infrastructure_pid(worker, 4711)
        self.known[key] = replace(self.known[key], infrastructure_pid=pid)
        assert (await self.set(run_id, RUNNING))["status"] == "ACCEPT"

    async def report(self, run_id: str, **report: Any) -> None:
        self._reports[UUID(run_id)] = {"worker": "w1"} | report

    async def complete(self, run_id: str, result: Any = None, usage: Any = None) -> None:
        await self.report(run_id, result=result or {"output": "done"}, resource_usage=usage or {"memory_used_gb": 0.1})
        assert (await self.set(run_id, "COMPLETED"))["status"] == "ACCEPT"

    async def fail(self, run_id: str, message: str = "step 'x': broke", **report: Any) -> None:
        await self.report(run_id, error={"type": "step_failed", "message": message, "step": "x"}, **report)
        assert (await self.set(run_id, "FAILED", message=message))["status"] == "ACCEPT"

    async def heartbeat(self, worker: str) -> None:
        self.beats[worker] = datetime.now(UTC)

    async def quick_run(self, **run: Any) -> str:
        deployment = self.deployments[self.template]
        queue = run.get("work_queue_name", "priority-5")
        made = NewRun("quick", "", run.get("parameters", {}), queue, (), {}, SCHEDULED, "Scheduled")
        return str(self._add(deployment, None, _state(SCHEDULED, "Scheduled", None, None, None), made).id)

    async def delete(self, run_id: str) -> None:
        self.known.pop(UUID(run_id))

    async def work_off(self, *, until: asyncio.Event, order: list[str] | None = None) -> None:
        while not until.is_set():
            for run_id in await self.due(1):
                if await self.claim(run_id):
                    if order is not None:
                        order.append(run_id)
                    await self.set(run_id, RUNNING)
                    await self.complete(run_id)
            await asyncio.sleep(0.005)

    # Inside.

    def _deployment(self, deployment_id: UUID) -> Deployment | None:
        return next((known for known in self.deployments.values() if known.id == deployment_id), None)

    def _add(self, deployment: Deployment, key: str | None, state: RunState, run: NewRun) -> FlowRun:
        made = FlowRun(
            id=uuid.uuid4(),
            flow_id=deployment.flow_id,
            deployment_id=deployment.id,
            idempotency_key=key,
            state=state,
            created=datetime.now(UTC),
            start_time=None,
            next_scheduled_start_time=None,
            work_pool=self.pool,
            work_queue=run.work_queue,
            parameters=run.parameters,
            labels=run.labels,
            auto_scheduled=False,
        )
        self.tags[made.id] = run.tags
        return self._enter(made, state)

    def _orchestrate(self, run: FlowRun, new: RunState, *, force: bool) -> StateAnswer:
        present = run.state
        if force:
            return StateAnswer(True, self._enter(run, new).state)
        if new.transition_id is not None and new.transition_id == present.transition_id:
            return StateAnswer(False, present, "This run has already made this state transition.")
        if present.type == "COMPLETED" and new.type == CANCELLING:
            return StateAnswer(False, None, "completed")
        if present.type == CANCELLING and new.type != CANCELLED:
            return StateAnswer(False, present, "cancelling")
        if present.type == SCHEDULED and new.type == CANCELLING and not run.infrastructure_pid:
            return StateAnswer(False, self._enter(run, _state(CANCELLED, None, None, None, None)).state, "no work")
        if new.type == PENDING and present.type in (PENDING, RUNNING, CANCELLING, CANCELLED):
            return StateAnswer(False, None, "not again")
        return StateAnswer(True, self._enter(run, new).state)

    def _enter(self, run: FlowRun, state: RunState) -> FlowRun:
        starts = state.type == RUNNING or state.type in FINAL_STATES  # without ever running, its end is its start
        start = run.start_time or (state.timestamp if starts else None)
        due = state.scheduled_time if state.type == SCHEDULED else None
        changed = replace(run, state=state, start_time=start, next_scheduled_start_time=due)
        self.known[run.id] = changed
        self.history.setdefault(run.id, []).append(state)
        if self.hears_events:
            for queue in self._subscribers:
                queue.put_nowait(RunEvent(run.id, state.id, state.timestamp, state.name))
        return changed


def _state(
    kind: str, name: str | None, message: str | None, scheduled: datetime | None, transition: UUID | None
) -> RunState:
    now = datetime.now(UTC)
    due = (scheduled or now) if kind == SCHEDULED else None
    return RunState(uuid.uuid4(), kind, name or kind.capitalize(), message, now, transition, due)


def _matches(run: FlowRun, which: RunFilter) -> bool:
    if which.work_pools and run.work_pool not in which.work_pools:
        return False
    if which.state_types is not None and run.state.type not in which.state_types:
        return False
    if which.expected_after is not None and run.created < which.expected_after:
        return False
    ended = run.state.timestamp if run.state.type in FINAL_STATES else None
    return which.ended_after is None or (ended is not None and ended >= which.ended_after)


def _as_json(run: FlowRun) -> dict[str, Any]:
    return {
        "id": str(run.id),
        "idempotency_key": run.idempotency_key,
        "state_type": run.state.type,
        "state_name": run.state.name,
        "work_queue_name": run.work_queue,
        "work_pool_name": run.work_pool,
        "parameters": run.parameters,
        "created": run.created.isoformat(),
    }
