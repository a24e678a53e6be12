"""Looking at the core from outside: whether it has come to rest, and whether what it shows agrees with the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import asyncpg

from ai_task_orchestra import protocol
from api.prefect_types import CANCELLING, FINAL_STATES, PENDING, RUNNING, SCHEDULED
from tests.support.core_workers import WatchedDouble, Workers
from tests.support.task_model import FINAL, ModelTask, TaskModel

REST_SECONDS = 60.0

_ROWS = """
    SELECT id::text, status, priority, generation, phase, unresolved, move_to, flow_run_id, state_id, failures, losses,
        cancel_requested_at IS NOT NULL AS cancelling, not_before > now() AS is_for_later
    FROM task ORDER BY seq
"""


class Watch:
    """Compares rows, flow runs and the model."""

    def __init__(
        self, url: str, double: WatchedDouble, model: TaskModel, workers: Workers, unknown: Callable[[str], ModelTask]
    ) -> None:
        """`unknown` is asked for the task of a row that nobody knows."""
        self._url, self._double, self._model, self._workers, self._unknown = url, double, model, workers, unknown
        self._sql: Any = None

    async def connect(self) -> None:
        """Begin with empty tables."""
        self._sql = await asyncpg.connect(self._url)
        await self._sql.execute("TRUNCATE task, dependency, attempt, disposal, audit")

    async def close(self) -> None:
        await self._sql.close()

    async def look(self) -> list[Any]:
        """What the API would show agrees with the model. Returns the rows."""
        rows = list(await self._sql.fetch(_ROWS))
        self._workers.notice_losses()
        for row in rows:
            task = self._model.tasks.get(row["id"]) or self._unknown(row["id"])
            task.is_seen = True
            self._model.show(task, row["status"])
            if row["status"] == "cancelled" and not task.restarted:
                self._check_nothing_lives(task)
        shown = {row["id"] for row in rows}
        for task in self._model.tasks.values():
            assert task.id in shown or not task.is_seen, f"{task.id} is lost"
        return rows

    async def rest(self) -> None:
        """Wait until the core has nothing to do, and compare everything."""
        deadline = time.monotonic() + REST_SECONDS
        while True:
            await self._workers.confirm_cancels()
            rows = await self.look()
            left = await self._sql.fetch("SELECT flow_run_id, action FROM disposal")
            unrest = f"disposals {left}" if left else self._unrest(rows)
            if unrest is None:
                break
            assert time.monotonic() < deadline, f"no rest: {unrest}"
            await asyncio.sleep(0.003)
        for row in rows:
            task = self._model.tasks[row["id"]]
            self._model.rest(task, row["failures"], row["losses"])
            assert row["priority"] in task.priorities, f"{task.id} has priority {row['priority']}"
            task.priorities = {row["priority"]}
            if row["status"] not in FINAL:
                self._check_run(task, row)
        self._model.at_rest = True

    def _unrest(self, rows: list[Any]) -> str | None:
        """Why the core has something to do still."""
        for task in self._model.tasks.values():
            if not task.is_seen and UUID(task.id) in self._double.known:
                return f"{task.id} is to be adopted"
        for row in rows:
            if why := self._unrest_of_row(row):
                return f"{row['id']}: {why}"
        present = {row["flow_run_id"] for row in rows if row["status"] not in FINAL}
        for run in self._double.known.values():
            if why := self._unrest_of_run(run, run.id in present):
                return f"{run.id}: {why}"
        return None

    def _unrest_of_row(self, row: Any) -> str | None:
        if row["status"] in FINAL:
            return "its run is being created" if row["phase"] == "creating" else None
        if row["cancelling"] or row["move_to"] is not None or row["is_for_later"]:
            return "to be cancelled, moved or run again later"
        if row["phase"] in ("waiting", "creating") or (row["phase"] == "held" and not row["unresolved"]):
            return f"to be dispatched: {row['phase']}"
        run = self._double.known.get(row["flow_run_id"])
        if run is None or run.state.id != row["state_id"]:
            return "its run has changed"
        return "it is being cancelled" if run.state.type == CANCELLING else None

    def _unrest_of_run(self, run: Any, is_present: bool) -> str | None:
        attempt = self._workers.attempts.get(run.id)
        if is_present:
            lost = attempt is not None and attempt.worker not in self._double.living
            return "it is with a lost worker" if lost and run.state.type in (PENDING, RUNNING) else None
        task = self._model.tasks[self._double.task_id(run.id)]
        theirs = task.adopted and task.is_seen  # to run again as they like
        return f"it lives ({run.state.name})" if run.state.type not in FINAL_STATES and not theirs else None

    def _check_run(self, task: ModelTask, row: Any) -> None:
        """At rest, Prefect shows what the row says."""
        run = self._double.known[row["flow_run_id"]]
        assert run.work_queue == protocol.queue_name(row["priority"])
        if task.waits:
            assert run.state.name == protocol.STATE_HELD, f"{task.id} should be held and is {run.state.name}"
        elif run.id not in self._workers.attempts:
            assert run.state.type == SCHEDULED and run.state.name != protocol.STATE_HELD, f"{task.id}: {run.state}"
        assert row["status"] == ("running" if run.state.type == RUNNING else "queued")

    def _check_nothing_lives(self, task: ModelTask) -> None:
        """A task that is shown as cancelled has no run that works or that a worker could take."""
        for run in self._double.runs_of(task.id):
            free = run.state.type == SCHEDULED and run.state.name != protocol.STATE_HELD
            assert not free and run.state.type not in (RUNNING, CANCELLING), f"{task.id} is cancelled, {run.state}"
