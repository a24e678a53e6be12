"""Workers of Prefect's double, played by hand: what they do is told to the model, and what they must not be able to do
is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from ai_task_orchestra import protocol
from api.prefect_types import CANCELLED, CANCELLING, CRASHED, FINAL_STATES, PENDING, RUNNING, SCHEDULED, Worker
from tests.support.prefect_double import PrefectDouble
from tests.support.task_model import ModelTask, TaskModel

WORKERS = ("one", "two", "three")


@dataclass
class Attempt:
    """A flow run that a worker has claimed, as that worker sees it. `is_lost`: the core took it away."""

    run_id: UUID
    task: ModelTask
    worker: str
    running: bool = False
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

    def task_id(self, run_id: UUID) -> str:
        """Of which task a run is an attempt."""
        return protocol.task_of_run(run_id, self.known[run_id].idempotency_key)[0]

    def runs_of(self, task_id: str) -> list[Any]:
        """All flow runs of a task, the oldest generation first."""
        of_task = [run for run in self.known.values() if self.task_id(run.id) == task_id]
        return sorted(of_task, key=lambda run: protocol.task_of_run(run.id, run.idempotency_key)[1])


class Workers:
    """What workers have and do."""

    def __init__(self, double: WatchedDouble, model: TaskModel, note: Callable[[str], None]) -> None:
        self._double, self._model, self._note = double, model, note
        self.attempts: dict[UUID, Attempt] = {}

    def has(self, task: ModelTask) -> bool:
        """Whether somebody has claimed it."""
        return any(attempt.task is task and not attempt.is_lost for attempt in self.attempts.values())

    async def claim(self, worker: str, *, start: bool = True) -> Attempt | None:
        """Claim what is due first, and begin to work on it. At rest, nothing more urgent may be waiting."""
        due = await self._double.due(1)
        if not due or worker not in self._double.living:
            return None
        run_id = UUID(due[0])
        task = self._model.tasks[self._double.task_id(run_id)]
        if self._model.at_rest:
            runnable = [t for t in self._model.tasks.values() if t.shown == "queued" and not t.waits]
            urgent = max((min(t.priorities) for t in runnable if not self.has(t)), default=0)
            assert max(task.priorities) >= urgent, f"{task.id} starts before one of priority {urgent}"
        return await self.take(run_id, worker, start=start)

    async def take(self, run_id: UUID, worker: str, *, start: bool = True) -> Attempt | None:
        """Claim this run; None if it can't be had."""
        self._model.at_rest = False
        run = self._double.known.get(run_id)
        if run is None or run.state.name == protocol.STATE_HELD or not await self._double.claim(str(run_id), worker):
            return None
        task = self._model.tasks[self._double.task_id(run_id)]
        attempt = self.attempts[run_id] = Attempt(run_id, task, worker)
        self._note(f"worker {worker} claims {run_id} of {task.id}")
        if start:
            await self.start(attempt)
        return attempt

    async def start(self, attempt: Attempt) -> None:
        """The first step body begins."""
        run = self._double.known.get(attempt.run_id)
        if attempt.running or run is None or run.state.type != PENDING:
            return
        for other in self.attempts.values():
            if other.task is attempt.task and other is not attempt and other.running:
                present = self._double.known.get(other.run_id)
                over = present is None or present.state.type in FINAL_STATES
                assert over, f"{attempt.task.id} runs twice at the same time"
        self._model.started(attempt.task)
        pid = protocol.infrastructure_pid(attempt.worker, 4711)
        self._double.known[run.id] = replace(run, infrastructure_pid=pid)
        await self._double.set(str(run.id), RUNNING)
        attempt.running = True
        self._note(f"worker {attempt.worker} runs {attempt.run_id}")

    async def end(self, attempt: Attempt, how: str) -> bool:
        """The worker's last word about a run. True: Prefect took it, and the run was still the worker's."""
        if not attempt.running:
            return False
        self._model.at_rest = False
        self.notice_losses()
        run = self._double.known.get(attempt.run_id)
        self.attempts.pop(attempt.run_id, None)
        if run is None:
            return False
        before = run.state.type
        report: dict[str, Any] = {"result": {"output": "done"}} if how == "COMPLETED" else {}
        await self._double.report(str(run.id), **report)
        answer = await self._double.set(str(run.id), how, message=f"{how} by {attempt.worker}")
        taken = answer["status"] == "ACCEPT" and before == RUNNING
        self._note(f"worker {attempt.worker} says {how} of {run.id} ({before}): {answer['status']}")
        if taken:
            self._model.ended(attempt.task, how.lower())
        return taken

    async def give_back(self, attempt: Attempt) -> None:
        """A stopping worker returns what it has claimed and not begun."""
        run = self._double.known.get(attempt.run_id)
        if attempt.running or run is None or run.state.type != PENDING:
            return
        self._model.at_rest = False
        del self.attempts[attempt.run_id]
        await self._double.set(str(run.id), SCHEDULED, name=protocol.STATE_QUEUED)
        self._note(f"worker {attempt.worker} gives {run.id} back")

    async def work(self, worker: str) -> None:
        """Take what is due first and complete it."""
        if attempt := await self.claim(worker):
            await self.end(attempt, "COMPLETED")

    async def lose(self, worker: str) -> None:
        """The worker sends no heartbeat any more."""
        self._model.at_rest = False
        self._double.living.discard(worker)
        self._note(f"worker {worker} is lost")

    async def revive(self, worker: str) -> None:
        """It sends its heartbeat again, and still believes to have what it had."""
        self._double.living.add(worker)
        self._note(f"worker {worker} is back")

    def notice_losses(self) -> None:
        """Tell the model of the runs that the core has taken away since the last time."""
        for attempt in self.attempts.values():
            run = self._double.known.get(attempt.run_id)
            if not attempt.is_lost and run is not None and run.state.type == CRASHED:
                attempt.is_lost = True
                self._model.ended(attempt.task, "crashed")

    async def confirm_cancels(self) -> None:
        """Living workers stop what is being cancelled; what nobody has is stopped by Prefect's own clean-up."""
        for run in list(self._double.known.values()):
            attempt = self.attempts.get(run.id)
            if run.state.type == CANCELLING and (attempt is None or attempt.worker in self._double.living):
                await self._double.set(str(run.id), CANCELLED, force=True)
                self.attempts.pop(run.id, None)
