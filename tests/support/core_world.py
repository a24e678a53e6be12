"""The real core on a real PostgreSQL beside Prefect's double, driven deed by deed from outside its event loop.

Between two deeds the loop stands still, so a history is decided by its deeds and by how long the core was left to
itself after each. Every deed is told to the model as well, and what the API shows is compared with it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import UUID

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import (
    ConflictError,
    DependencyFailedError,
    DispatchError,
    IdempotencyMismatchError,
    NotFoundError,
    UnreachableError,
)
from ai_task_orchestra.settings import Settings
from api.database import plain_url
from api.prefect_types import CANCELLING, FINAL_STATES, SCHEDULED
from tests.support.core_bench import TENANT, CoreBench, open_bench
from tests.support.core_watch import Watch
from tests.support.core_workers import WORKERS, Attempt, WatchedDouble, Workers
from tests.support.task_model import FINAL, ModelTask, TaskModel

T = TypeVar("T")

#: What may break, until everything is repaired for the next rest.
FAULTS = (
    "Prefect down",
    "events lost",
    "replies lost",
    "API stands still",
    "API dies in the next request",
    "API killed",
)


class CoreWorld:
    """One history, with templates `work`, `retried` (twice) and `once`. Close it with `close()`."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url
        self._settings = settings
        self._runner = asyncio.Runner()
        self._stack: AsyncExitStack | None = None
        #: The API process is killed this long after the next request has begun.
        self._doom: float | None = None
        self._unanswered: list[tuple[ModelTask, str | None, str]] = []
        self._keys: dict[str, tuple[ModelTask, str]] = {}
        self.trace: list[str] = []
        self.is_broken = False
        self.double = WatchedDouble()
        self.model = TaskModel()
        self.workers = Workers(self.double, self.model, self.trace.append)
        self.watch = Watch(plain_url(settings.database_url), self.double, self.model, self.workers, self._found)
        self.do(self.watch.connect())
        self.do(self.open())

    def do(self, deed: Coroutine[Any, Any, T]) -> T:
        """Let the loop run until `deed` is done."""
        try:
            return self._runner.run(deed)
        except BaseException:
            self.is_broken = True
            raise

    def close(self) -> None:
        try:
            self._runner.run(self.kill())
            self._runner.run(self.watch.close())
        finally:
            self._runner.close()

    async def rest(self) -> None:
        """Repair what is broken, let the core come to rest, and compare everything."""
        if self.double.is_shaky:
            await self.kill()
        self.double.is_down, self.double.hears_events = False, True
        await self.open()
        await self.watch.rest()

    async def finish(self) -> None:
        """Let everything be worked off; every task must come to its end."""
        self.double.go_on()
        self.double.living = set(WORKERS)
        for attempt in list(self.workers.attempts.values()):
            await self.workers.start(attempt)
            await self.workers.end(attempt, "COMPLETED")
        await self.rest()
        while self.live:
            taken = await self.claim_all()
            assert taken, f"tasks hang: {[(task.id, task.shown) for task in self.live]}"
            for attempt in taken:
                await self.workers.end(attempt, "COMPLETED")
            await self.rest()
        self.model.check_relations()

    @property
    def live(self) -> list[ModelTask]:
        return [task for task in self.model.tasks.values() if task.shown not in FINAL]

    async def claim_all(self) -> list[Attempt]:
        """Everything that is due, claimed and started."""
        taken: list[Attempt] = []
        while attempt := await self.workers.claim(WORKERS[0]):
            taken.append(attempt)
        return taken

    # The API process, and what may go wrong.

    @property
    def is_open(self) -> bool:
        return self._stack is not None

    @property
    def prefect_answers(self) -> bool:
        """Whether the core gets an answer to whatever it asks of Prefect."""
        return self.is_open and not self.double.is_down and not self.double.is_shaky

    async def open(self) -> None:
        if self._stack is None:
            self._stack = AsyncExitStack()
            opening = open_bench(self._settings, self.double, gateway=self.double)
            self.bench: CoreBench = await self._stack.enter_async_context(opening)

    async def kill(self) -> None:
        """End the API process wherever it stands. Closing does nothing that a `kill -9` would not do as well."""
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()
        self.double.go_on()

    async def fault(self, kind: str, method: str, number: int) -> None:
        self.model.at_rest = False
        self.trace.append(f"fault: {kind} {method} {number}")
        if kind == "Prefect down":
            self.double.is_down = True
        elif kind == "events lost":
            self.double.hears_events = False
        elif kind == "replies lost":
            self.double.lose_replies(method, number)
        elif kind == "API stands still":  # until it is killed
            self.double.stop(method, ("before", "after")[number % 2])
        elif kind == "API dies in the next request":
            self._doom = number / 500
        else:
            await self.kill()

    async def _answered(self, request: Coroutine[Any, Any, T]) -> T | None:
        """The answer to a request; None if the process was killed before, or stood still on a way to Prefect."""
        asking = asyncio.ensure_future(request)
        stopped = asyncio.ensure_future(self.double.stopped.wait())
        await asyncio.wait({asking, stopped}, timeout=self._doom, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not asking.done() and self._doom is None:
            await asyncio.wait({asking}, timeout=0.02)
        self._doom = None
        if asking.done():
            return asking.result()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await self.kill()
        return None

    # What clients do.

    async def post(
        self,
        *,
        priority: int = 5,
        depends_on: list[ModelTask] | None = None,
        runs_anyway: bool = False,
        template: str = "work",
        key: str | None = None,
    ) -> ModelTask | None:
        """Returns the new task. With a `key` that was used before this is a repetition of that post, or refused."""
        self.model.at_rest = False
        upstream = list(dict.fromkeys(depends_on or []))
        new = self.bench.new(
            priority=priority,
            depends_on=[up.id for up in upstream],
            on_dependency_failure="run" if runs_anyway else "cancel",
            template=template,
        )
        body, before = f"{priority} {runs_anyway} {template}", self._keys.get(key or "")
        may_refuse, must_refuse = self.model.may_refuse(upstream), self.model.must_refuse(upstream)
        submit = self.bench.service.submit(new, tenant=TENANT, idempotency_key=key, body_hash=body if key else None)
        try:
            made = await self._answered(submit)
        except DependencyFailedError:
            assert may_refuse and not runs_anyway and before is None
            return None
        except IdempotencyMismatchError:
            assert before is not None and before[1] != body
            return None
        if before is not None:
            assert made is None or (not made.created and (made.task.id, body) == (before[0].id, before[1]))
            return None
        retries, max_losses = {"retried": (2, 3), "once": (0, 1)}.get(template, (0, 3))
        task = ModelTask("", {priority}, upstream, runs_anyway, retries, max_losses)
        self._unanswered.append((task, key, body))
        if made is not None:
            assert made.created and (runs_anyway or not must_refuse)
            self._found(made.task.id)
        self.trace.append(f"post {task.id}: {body}, after {[up.id for up in upstream]}")
        return task

    def _found(self, task_id: str) -> ModelTask:
        """The task of the last post is there, whether its client has heard of it or not."""
        assert self._unanswered, f"nobody posted {task_id}"
        task, key, body = self._unanswered.pop()
        self._unanswered.clear()
        task.id, task.is_seen = task_id, True
        if key is not None:
            self._keys[key] = (task, body)
        return self.model.accept(task)

    async def patch(self, task: ModelTask, priority: int) -> bool:
        """True: 200. Whether another answer was right shows only where everything was at rest before."""
        must = self.model.at_rest and task.shown == "queued" and not self.workers.has(task) and self.prefect_answers
        self.model.at_rest = False
        try:
            view = await self._answered(self.bench.service.change_priority(task.id, priority, tenant=TENANT))
        except (NotFoundError, ConflictError, UnreachableError, DispatchError) as exc:
            self.trace.append(f"patch {task.id} to {priority}: {type(exc).__name__}")
            assert not must, f"{exc} for {task.id}, which nobody has started"
            assert not isinstance(exc, NotFoundError) or not task.is_seen
            if isinstance(exc, UnreachableError | DispatchError):
                task.priorities.add(priority)
            return False
        self.trace.append(f"patch {task.id} to {priority}: {view and 200}")
        if view is None:
            task.priorities.add(priority)
            return False
        assert view.priority == priority
        task.priorities = {priority}
        return True

    async def cancel(self, task: ModelTask) -> bool:
        """True: 204."""
        answers = self.prefect_answers
        self.model.at_rest = False

        async def request() -> bool:
            await self.bench.service.cancel(task.id, tenant=TENANT)
            return True

        try:
            done = await self._answered(request())
        except NotFoundError:
            assert not task.is_seen
            return False
        except ConflictError:
            self.trace.append(f"cancel {task.id}: 409")
            self.model.cancel_refused(task)
            return False
        self.trace.append(f"cancel {task.id}: {done and 204}")
        if done:
            self.model.cancel_accepted(task, prefect_answers=answers)
        else:
            self.model.meddled(task)
        return bool(done)

    # What people do in Prefect.

    async def quick_run(self, priority: int) -> None:
        self.model.at_rest = False
        run_id = await self.double.quick_run(work_queue_name=protocol.queue_name(priority))
        self.model.accept(ModelTask(run_id, {priority}, adopted=True))
        self.trace.append(f"quick run {run_id} priority {priority}")

    async def meddle(self, task: ModelTask, how: str) -> None:
        """`delete`, `cancel` or start `again` the latest run of a task, by hand."""
        runs = self.double.runs_of(task.id)
        if not runs or not task.is_seen:
            return
        run, was_at_rest = runs[-1], self.model.at_rest
        is_over = run.state.type in FINAL_STATES
        if how != "delete" and is_over != (how == "again"):
            return
        self.model.at_rest = False
        self.trace.append(f"by hand: {how} {run.id} of {task.id} ({run.state.name})")
        if how == "delete":
            await self.double.delete(str(run.id))
        elif how == "cancel":
            await self.double.set(str(run.id), CANCELLING)
        else:
            await self.double.set(str(run.id), SCHEDULED)
            task.restarted = True
        if was_at_rest and how != "again":
            self.model.ended(task, "cancelled")
        else:
            self.model.meddled(task)

    # Races.

    async def race(self, task: ModelTask, kind: str, priority: int, chance: random.Random) -> None:
        """PATCH against a worker's claim, or cancel against the end of the work, in a random interleaving."""
        runs, worker = self.double.runs_of(task.id), min(self.double.living, default="")
        if not runs or not worker:
            return
        if kind == "cancel" and runs[-1].state.type == SCHEDULED:
            await self.workers.take(runs[-1].id, worker)
        self.model.at_rest = False
        start = chance.choice((0.0, 0.001, 0.003, 0.006))
        self.double.pause = lambda: chance.choice((0.0, 0.0, 0.001, 0.003))
        try:
            if kind == "patch":
                other = priority % 10 + 1 if priority in task.priorities else priority
                moved, taken = await asyncio.gather(
                    self.patch(task, other), self._take_later(runs[-1].id, worker, start)
                )
                assert not (moved and taken), f"{task.id} was moved and started"
            else:
                cancelled, ended = await asyncio.gather(self.cancel(task), self._end_later(task, start))
                assert not (cancelled and ended) or task.restarted, f"{task.id} was cancelled and completed"
        finally:
            self.double.pause = None

    async def _take_later(self, run_id: UUID, worker: str, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        run = self.double.known.get(run_id)
        if run is None or run.state.type != SCHEDULED:
            return False
        return await self.workers.take(run_id, worker) is not None

    async def _end_later(self, task: ModelTask, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        mine = [attempt for attempt in self.workers.attempts.values() if attempt.task is task and not attempt.is_lost]
        return bool(mine) and await self.workers.end(mine[0], "COMPLETED")
