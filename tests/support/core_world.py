"""The real core on a real PostgreSQL beside Prefect's double, driven deed by deed from outside its event loop.

Between two deeds the loop stands still, so a history is decided by its deeds and by how long the core was left to
itself after each. Every deed is told to the model as well, and what the API shows is compared with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

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
from api.prefect_types import CANCELLED, CANCELLING, FINAL_STATES, PENDING, RUNNING, SCHEDULED, Worker
from tests.support.core_bench import TENANT, CoreBench, open_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.task_model import FINAL, ModelTask, TaskModel

T = TypeVar("T")

WORKERS = ("one", "two", "three")
REST_SECONDS = 25.0

_ROWS = """
    SELECT id::text, status, priority, generation, phase, unresolved, move_to, flow_run_id, state_id, failures, losses,
        cancel_requested_at IS NOT NULL AS cancelling, adopted, not_before > now() AS is_for_later
    FROM task ORDER BY seq
"""


@dataclass
class Attempt:
    """A flow run that a worker has claimed, as that worker sees it."""

    run_id: UUID
    task: ModelTask
    worker: str
    running: bool
    is_lost: bool = False


class WatchedDouble(PrefectDouble):
    """Whose living workers have just sent a heartbeat whenever somebody looks."""

    def __init__(self) -> None:
        super().__init__()
        for template in ("retried", "once"):
            self.deploy_now(template)
        self.living = set(WORKERS)

    async def workers(self, pool: str) -> list[Worker]:
        for name in self.living:
            await self.heartbeat(name)
        return await super().workers(pool)


class CoreWorld:
    """One history. Close it with `close()`."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url
        self._settings, self._url = settings, plain_url(settings.database_url)
        self._runner = asyncio.Runner()
        self._stack: AsyncExitStack | None = None
        self._sql: Any = None
        self.double = WatchedDouble()
        self.model = TaskModel()
        self.attempts: dict[UUID, Attempt] = {}
        self.keys: dict[str, tuple[ModelTask, str]] = {}
        self.at_rest = False
        self.is_broken = False
        #: The API process is killed this long after the next request has begun.
        self.doom: float | None = None
        self.trace: list[str] = []
        self._posted: list[ModelTask] = []
        self.do(self._connect())
        self.do(self.open())

    def do(self, deed: Coroutine[Any, Any, T]) -> T:
        """Let the loop run until `deed` is done."""
        try:
            return self._runner.run(deed)
        except BaseException:
            self.is_broken = True
            raise

    def note(self, line: str) -> None:
        self.trace.append(line)

    async def _connect(self) -> None:
        self._sql = await asyncpg.connect(self._url)
        await self._sql.execute("TRUNCATE task, dependency, attempt, disposal, audit")

    def close(self) -> None:
        async def end() -> None:
            await self.kill()
            await self._sql.close()

        try:
            self.do(end())
        finally:
            self._runner.close()

    # The API process.

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
            self.bench: CoreBench = await self._stack.enter_async_context(
                open_bench(self._settings, self.double, gateway=self.double)
            )

    async def kill(self) -> None:
        """End the API process wherever it stands. Closing does nothing that a `kill -9` would not do as well."""
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()
        self.double.go_on()

    async def answered(self, request: Coroutine[Any, Any, T]) -> T | None:
        """The answer to a request; None if the process was killed before, or stood still on a way to Prefect."""
        asking = asyncio.ensure_future(request)
        stopped = asyncio.ensure_future(self.double.stopped.wait())
        await asyncio.wait({asking, stopped}, timeout=self.doom, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not asking.done() and self.doom is None:
            await asyncio.wait({asking}, timeout=0.02)
        self.doom = None
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
        priority: int,
        depends_on: list[ModelTask],
        runs_anyway: bool,
        template: str,
        key: str | None = None,
        body: str = "body",
    ) -> None:
        """With a `key` that was used before this is a repetition of that post."""
        self.at_rest = False
        refusable, must = self.model.may_refuse(depends_on), self.model.must_refuse(depends_on)
        new = self.bench.new(
            priority=priority,
            depends_on=[up.id for up in depends_on],
            on_dependency_failure="run" if runs_anyway else "cancel",
            template=template,
        )
        before = self.keys.get(key or "")
        try:
            made = await self.answered(
                self.bench.service.submit(new, tenant=TENANT, idempotency_key=key, body_hash=body if key else None)
            )
        except DependencyFailedError:
            assert refusable and not runs_anyway and before is None
            self.note(f"post refused: {[up.id for up in depends_on]}")
            return
        except IdempotencyMismatchError:
            assert before is not None and before[1] != body
            return
        task = ModelTask(
            made.task.id if made else "",
            {priority},
            list(dict.fromkeys(depends_on)),
            runs_anyway,
            retries=2 if template == "retried" else 0,
            max_losses=1 if template == "once" else 3,
        )
        self.note(f"post {task.id} priority {priority} after {[up.id for up in depends_on]} {template} {runs_anyway}")
        if before is not None:
            assert made is None or (not made.created and made.task.id == before[0].id and before[1] == body)
        elif made is None:
            self._posted.append(task)
        else:
            assert made.created and (runs_anyway or not must)
            task.is_seen = True
            self.model.accept(task)
            if key:
                self.keys[key] = (task, body)

    async def patch(self, task: ModelTask, priority: int) -> bool:
        """True: 200. Whether 409 was right shows only where everything was at rest before."""
        must = self.at_rest and task.shown == "queued" and not self._is_claimed(task) and self.prefect_answers
        self.at_rest = False
        try:
            view = await self.answered(self.bench.service.change_priority(task.id, priority, tenant=TENANT))
        except NotFoundError:
            assert task.adopted and not task.is_seen
            return False
        except ConflictError:
            self.note(f"patch {task.id} to {priority}: 409")
            assert not must, f"409 for {task.id}, which nobody has started"
            return False
        except (UnreachableError, DispatchError):
            self.note(f"patch {task.id} to {priority}: 503")
            assert not must
            task.priorities.add(priority)
            return False
        if view is None:
            self.note(f"patch {task.id} to {priority}: no answer")
            task.priorities.add(priority)
            return False
        self.note(f"patch {task.id} to {priority}: 200")
        assert view.priority == priority or not self.prefect_answers or task.unsure
        task.priorities = {priority}
        return True

    async def cancel(self, task: ModelTask) -> bool:
        """True: 204."""
        answers = self.prefect_answers
        self.at_rest = False
        try:
            done = await self.answered(self._cancel(task))
        except NotFoundError:
            assert task.adopted and not task.is_seen
            return False
        except ConflictError:
            self.note(f"cancel {task.id}: 409")
            self.model.cancel_refused(task)
            return False
        if not done:
            self.note(f"cancel {task.id}: no answer")
            self.model.meddled(task)
            return False
        self.note(f"cancel {task.id}: 204")
        self.model.cancel_accepted(task, prefect_answers=answers)
        return True

    async def _cancel(self, task: ModelTask) -> bool:
        await self.bench.service.cancel(task.id, tenant=TENANT)
        return True

    # What workers do.

    async def claim(self, worker: str, *, start: bool = True) -> Attempt | None:
        """Claim what is due first, and begin to work on it. At rest, nothing more urgent may be waiting."""
        due = await self.double.due(1)
        if not due or worker not in self.double.living:
            return None
        task = await self._task_of(UUID(due[0]))
        if task is None:
            return None
        if self.at_rest:
            waiting = [t for t in self.model.tasks.values() if self._is_runnable(t)]
            urgent = max((min(t.priorities) for t in waiting), default=0)
            assert max(task.priorities) >= urgent, f"{task.id} starts before one of priority {urgent}"
        return await self.take(UUID(due[0]), task, worker, start=start)

    async def take(self, run_id: UUID, task: ModelTask, worker: str, *, start: bool = True) -> Attempt | None:
        """Claim this run; None if it can't be had."""
        self.at_rest = False
        if run_id not in self.double.known or not await self.double.claim(str(run_id), worker):
            return None
        attempt = self.attempts[run_id] = Attempt(run_id, task, worker, False)
        self.note(f"worker {worker} claims {run_id} of {task.id}")
        if start:
            await self.start(attempt)
        return attempt

    async def start(self, attempt: Attempt) -> None:
        run = self.double.known.get(attempt.run_id)
        if attempt.running or run is None or run.state.type != PENDING:
            return
        for other in self.attempts.values():
            if other.task is attempt.task and other is not attempt and other.running:
                present = self.double.known.get(other.run_id)
                over = present is None or present.state.type in FINAL_STATES
                assert over, f"{attempt.task.id} runs twice at the same time"
        self.model.started(attempt.task)
        pid = protocol.infrastructure_pid(attempt.worker, 4711)
        self.double.known[run.id] = replace(run, infrastructure_pid=pid)
        await self.double.set(str(run.id), RUNNING)
        attempt.running = True
        self.note(f"worker {attempt.worker} runs {attempt.run_id}")

    async def end(self, attempt: Attempt, how: str) -> bool:
        """The worker's last word about a run. True: Prefect took it, and the run was still the worker's."""
        if not attempt.running:
            return False
        self.at_rest = False
        self._notice_losses()
        run = self.double.known.get(attempt.run_id)
        self.attempts.pop(attempt.run_id, None)
        if run is None:
            return False
        before = run.state.type
        report: dict[str, Any] = {"result": {"output": "done"}} if how == "COMPLETED" else {}
        await self.double.report(str(run.id), **report)
        answer = await self.double.set(str(run.id), how, message=f"{how} by {attempt.worker}")
        taken = answer["status"] == "ACCEPT" and before == RUNNING
        self.note(f"worker {attempt.worker} says {how} of {run.id} ({before}): {answer['status']}")
        if taken:
            self.model.ended(attempt.task, how.lower())
        return taken

    async def give_back(self, attempt: Attempt) -> None:
        """A stopping worker returns what it has claimed and not begun."""
        run = self.double.known.get(attempt.run_id)
        if attempt.running or run is None or run.state.type != PENDING:
            return
        self.at_rest = False
        del self.attempts[attempt.run_id]
        await self.double.set(str(run.id), SCHEDULED, name=protocol.STATE_QUEUED)
        self.note(f"worker {attempt.worker} gives {run.id} back")

    async def work(self, worker: str) -> None:
        """Take what is due first and complete it."""
        if attempt := await self.claim(worker):
            await self.end(attempt, "COMPLETED")

    async def revive(self, worker: str) -> None:
        """It sends its heartbeat again, and still believes to have what it had."""
        self.double.living.add(worker)

    async def lose(self, worker: str) -> None:
        """The worker sends no heartbeat any more; what it has is lost."""
        if worker not in self.double.living:
            return
        self.at_rest = False
        self.double.living.discard(worker)
        self.note(f"worker {worker} is lost")

    async def confirm_cancels(self) -> None:
        """Living workers stop what is being cancelled; what nobody has is stopped by Prefect's own clean-up."""
        for run in list(self.double.known.values()):
            attempt = self.attempts.get(run.id)
            if run.state.type == CANCELLING and (attempt is None or attempt.worker in self.double.living):
                await self.double.set(str(run.id), CANCELLED, force=True)
                self.attempts.pop(run.id, None)

    # What people do in Prefect.

    async def quick_run(self, priority: int) -> None:
        self.at_rest = False
        run_id = await self.double.quick_run(work_queue_name=protocol.queue_name(priority))
        self.model.accept(ModelTask(run_id, {priority}, adopted=True))
        self.note(f"quick run {run_id} priority {priority}")

    async def meddle(self, task: ModelTask, how: str) -> None:
        """Delete, cancel or start again the present run of a task, by hand."""
        run = self._present_run(task)
        if run is None or not task.is_seen:
            return
        was_at_rest, self.at_rest = self.at_rest, False
        before = run.state.type
        self.note(f"by hand: {how} {run.id} of {task.id} ({before})")
        if how == "delete":
            await self.double.delete(str(run.id))
        elif how == "cancel" and before not in FINAL_STATES:
            answer = await self.double.set(str(run.id), CANCELLING)
            if answer["status"] == "ABORT":
                return
        elif how == "again" and before in FINAL_STATES:
            await self.double.set(str(run.id), SCHEDULED)
            task.restarted = True
        else:
            return
        if was_at_rest and how != "again":
            self.model.ended(task, "cancelled")
        else:
            self.model.meddled(task)

    # Faults: each lasts until the next rest.

    async def fault(self, kind: str, method: str, number: int) -> None:
        self.at_rest = False
        self.note(f"fault: {kind} {method} {number}")
        if kind == "Prefect down":
            self.double.is_down = True
        elif kind == "events lost":
            self.double.hears_events = False
        elif kind == "replies lost":
            self.double.lose_replies(method, number)
        elif kind == "API stands still":  # until it is killed
            self.double.stop(method, ("before", "after")[number % 2])
        elif kind == "API dies in the next request":
            self.doom = number / 500
        else:
            await self.kill()

    async def race(self, task: ModelTask, kind: str, priority: int, chance: random.Random) -> None:
        """PATCH against a worker's claim, or cancel against the end of the work, in a random interleaving."""
        run = self._present_run(task)
        worker = min(self.double.living, default=None)
        if worker is None:
            return
        priority = priority % 10 + 1 if priority in task.priorities else priority
        if kind == "cancel" and run is not None and run.state.type == SCHEDULED:
            await self._take_later(run, task, worker, 0.0)
        self.at_rest = False
        later = chance.choice((0.0, 0.001, 0.003, 0.006))
        self.double.pause = lambda: chance.choice((0.0, 0.0, 0.001, 0.003))
        try:
            if kind == "patch":
                moved, taken = await asyncio.gather(
                    self.patch(task, priority), self._take_later(run, task, worker, later)
                )
                assert not (moved and taken), f"{task.id} was moved and started"
            else:
                cancelled, ended = await asyncio.gather(self.cancel(task), self._end_later(task, later))
                assert not (cancelled and ended) or task.restarted, f"{task.id} was cancelled and completed"
        finally:
            self.double.pause = None

    async def _take_later(self, run: Any, task: ModelTask, worker: str, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        present = self.double.known.get(run.id) if run else None
        if present is None or present.state.type != SCHEDULED or present.state.name == protocol.STATE_HELD:
            return False
        return await self.take(run.id, task, worker) is not None

    async def _end_later(self, task: ModelTask, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        mine = [attempt for attempt in self.attempts.values() if attempt.task is task and not attempt.is_lost]
        return bool(mine) and await self.end(mine[0], "COMPLETED")

    # Looking.

    async def look(self) -> list[Any]:
        """Compare what the API would show with the model."""
        rows = list(await self._sql.fetch(_ROWS))
        self._notice_losses()
        for row in rows:
            task = self.model.tasks.get(row["id"]) or self._unanswered(row)
            task.is_seen = True
            self.model.show(task, row["status"])
            if row["status"] == "cancelled" and not task.restarted:
                self._check_nothing_lives(task)
        self._posted.clear()
        shown = {row["id"] for row in rows}
        for task in self.model.tasks.values():
            assert task.adopted or task.id in shown, f"{task.id} is lost"
        return rows

    async def rest(self) -> None:
        """Let whatever is broken work again, wait until the core has nothing to do, and compare everything."""
        if self.double.is_shaky:
            await self.kill()
        self.double.is_down, self.double.hears_events = False, True
        await self.open()
        deadline = time.monotonic() + REST_SECONDS
        while True:
            await self.confirm_cancels()
            rows = await self.look()
            left = await self._sql.fetch("SELECT flow_run_id, action FROM disposal")
            unrest = self._unrest(rows) or (f"disposals {left}" if left else None)
            if unrest is None:
                break
            assert time.monotonic() < deadline, f"no rest: {unrest}"
            await asyncio.sleep(0.003)
        for row in rows:
            task = self.model.tasks[row["id"]]
            self.model.rest(task, row["failures"], row["losses"])
            assert row["priority"] in task.priorities, f"{task.id} has priority {row['priority']}"
            task.priorities = {row["priority"]}
            self._check_run(task, row)
        self.at_rest = True

    async def finish(self) -> None:
        """Let everything work and be worked off; every task must come to its end."""
        self.double.go_on()
        self.double.living = set(WORKERS)
        for attempt in list(self.attempts.values()):
            await self.start(attempt)
            await self.end(attempt, "COMPLETED")
        await self.rest()
        while any(task.shown not in FINAL for task in self.model.tasks.values()):
            taken = [attempt for _ in range(50) if (attempt := await self.claim(WORKERS[0]))]
            assert taken, f"tasks hang: {[t for t in self.model.tasks.values() if t.shown not in FINAL]}"
            for attempt in taken:
                await self.end(attempt, "COMPLETED")
            await self.rest()
        self.model.check_relations()

    # Inside.

    def _unanswered(self, row: Any) -> ModelTask:
        """The task of a post that nobody has heard the answer of."""
        assert self._posted, f"nobody posted {row['id']}"
        task = self._posted.pop()
        task.id = row["id"]
        return self.model.accept(task)

    def _notice_losses(self) -> None:
        """The core has taken runs from lost workers."""
        for attempt in self.attempts.values():
            run = self.double.known.get(attempt.run_id)
            if not attempt.is_lost and run is not None and run.state.type == "CRASHED":
                attempt.is_lost = True
                self.model.ended(attempt.task, "crashed")

    def _unrest(self, rows: list[Any]) -> str | None:
        """Why the core has something to do still."""
        counting = {(row["id"], row["generation"]): row for row in rows}
        for task in self.model.tasks.values():
            if not task.is_seen and UUID(task.id) in self.double.known:
                return f"{task.id} is to be adopted"
        for row in rows:
            if why := self._unrest_of(row):
                return f"{row['id']}: {why}"
        for run in self.double.known.values():
            row = counting.get(protocol.task_of_run(run.id, run.idempotency_key))
            if row is None or row["flow_run_id"] != run.id or row["status"] in FINAL:
                task = self.model.tasks[protocol.task_of_run(run.id, run.idempotency_key)[0]]
                theirs = task.adopted and task.is_seen  # to run again as they like
                if run.state.type not in FINAL_STATES and not theirs:
                    return f"{run.id} of {run.idempotency_key} lives ({run.state.name})"
            attempt = self.attempts.get(run.id)
            lost = attempt is not None and attempt.worker not in self.double.living and not attempt.task.is_decided
            if lost and run.state.type in (PENDING, RUNNING):
                return f"{run.id} is with a lost worker"
        return None

    def _unrest_of(self, row: Any) -> str | None:
        if row["status"] in FINAL:
            return "its run is being created" if row["phase"] == "creating" else None
        if row["cancelling"] or row["move_to"] is not None or row["is_for_later"]:
            return "to be cancelled, moved or run again later"
        if row["phase"] in ("waiting", "creating") or (row["phase"] == "held" and not row["unresolved"]):
            return f"to be dispatched: {row['phase']}"
        run = self.double.known.get(row["flow_run_id"])
        if run is None or run.state.id != row["state_id"]:
            return "its run has changed"
        return "it is being cancelled" if run.state.type == CANCELLING else None

    def _check_run(self, task: ModelTask, row: Any) -> None:
        """At rest, Prefect shows what the row says."""
        if row["status"] in FINAL:
            return
        run = self.double.known[row["flow_run_id"]]
        assert run.work_queue == protocol.queue_name(row["priority"]) or task.adopted
        if task.waits:
            assert run.state.name == protocol.STATE_HELD, f"{task.id} should be held and is {run.state.name}"
        elif run.id not in self.attempts:
            assert run.state.type == SCHEDULED and run.state.name != protocol.STATE_HELD, f"{task.id}: {run.state}"
        assert row["status"] == ("running" if run.state.type == RUNNING else "queued")

    def _check_nothing_lives(self, task: ModelTask) -> None:
        """A task that is shown as cancelled has no run that works or that a worker could take."""
        for run in self.double.known.values():
            if protocol.task_of_run(run.id, run.idempotency_key)[0] == task.id:
                free = run.state.type == SCHEDULED and run.state.name != protocol.STATE_HELD
                assert not free and run.state.type not in (RUNNING, CANCELLING), f"{task.id} is cancelled, {run.state}"

    def _present_run(self, task: ModelTask) -> Any:
        runs = [
            (protocol.task_of_run(run.id, run.idempotency_key)[1], run)
            for run in self.double.known.values()
            if protocol.task_of_run(run.id, run.idempotency_key)[0] == task.id
        ]
        return max(runs, key=lambda found: found[0])[1] if runs else None

    def _is_claimed(self, task: ModelTask) -> bool:
        return any(attempt.task is task and not attempt.is_lost for attempt in self.attempts.values())

    def _is_runnable(self, task: ModelTask) -> bool:
        return task.shown == "queued" and not task.waits and not self._is_claimed(task)

    async def _task_of(self, run_id: UUID) -> ModelTask | None:
        run = self.double.known[run_id]
        return self.model.tasks.get(protocol.task_of_run(run_id, run.idempotency_key)[0])
