"""What the REST API may ask of the core."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from ai_task_orchestra.errors import ConflictError, NotFoundError, UnknownDependencyError
from ai_task_orchestra.settings import Settings
from api import plain_data
from api.cancellation import Cancellation
from api.database import Sessions
from api.gateway import PAGE, PrefectGateway
from api.priorities import Priorities
from api.task_store import Acceptance, TaskStore, columns_of
from api.views import AttemptView, LogLine, NewTask, OnDependencyFailure, Submission, TaskView

__all__ = ["AttemptView", "LogLine", "NewTask", "OnDependencyFailure", "Submission", "TaskService", "TaskView"]

logger = logging.getLogger(__name__)

TaskPage: TypeAlias = tuple[list[TaskView], int]
LogLines: TypeAlias = list[LogLine]

READY_SECONDS: Final = 4.0
MAX_SHOWN_ID: Final = 80


class TaskService:
    """Tasks of one tenant at a time: another tenant's are not found."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        store: TaskStore,
        gateway: PrefectGateway,
        cancellation: Cancellation,
        priorities: Priorities,
    ) -> None:
        self._settings, self._sessions, self._store, self._gateway = settings, sessions, store, gateway
        self._cancellation, self._priorities = cancellation, priorities

    async def submit(
        self, new: NewTask, *, tenant: str, idempotency_key: str | None = None, body_hash: str | None = None
    ) -> Submission:
        """Accept a task. When this returns it is durable; Prefect need not be there.

        Raises:
            UnknownDependencyError (NotFoundError), DependencyFailedError (ConflictError): see `depends_on`.
            IdempotencyMismatchError, IdempotencyBusyError: see `idempotency_key`.
            ParameterError: a parameter that Prefect would not take as plain data.
        """
        plain_data.refuse_programs(new.parameters)
        depends_on = [_upstream_id(text) for text in new.depends_on]
        acceptance = Acceptance(
            columns=columns_of(new, self._settings.work_pool) | {"depends_on": depends_on},
            tenant=tenant,
            upstream=list(dict.fromkeys(depends_on)),
            runs_anyway=new.on_dependency_failure == "run",
            idempotency_key=idempotency_key,
            body_hash=body_hash,
        )
        submission = await self._store.accept(acceptance)
        if submission.created:
            logger.info("task_accepted", extra={"task_id": submission.task.id, "template": submission.task.template})
        return submission

    async def get(self, task_id: str, *, tenant: str) -> TaskView:
        """One task with everything about it.

        Raises:
            NotFoundError: this tenant has no such task.
        """
        view = await self._store.get(_task_id(task_id), tenant)
        if view is None:
            raise NotFoundError("There is no task with this id.")
        return view

    async def by_status(self, *, tenant: str, limit: int = 100) -> dict[str, list[TaskView]]:
        """The newest tasks of each of the five statuses."""
        return await self._store.by_status(tenant=tenant, limit=limit)

    async def change_priority(self, task_id: str, priority: int, *, tenant: str) -> TaskView:
        """Move a queued task to another priority.

        Raises:
            NotFoundError: this tenant has no such task.
            ConflictError: it is not queued any more.
            UnreachableError: its flow run has to move, and Prefect does not answer.
        """
        await self.get(task_id, tenant=tenant)
        await self._priorities.change(UUID(task_id), priority)
        return await self.get(task_id, tenant=tenant)

    async def cancel(self, task_id: str, *, tenant: str) -> None:
        """Cancel a task; once this returns, that is recorded and will happen.

        Raises:
            NotFoundError: this tenant has no such task.
            ConflictError: it is completed or failed.
        """
        await self.get(task_id, tenant=tenant)
        await self._cancellation.request(UUID(task_id))
        status = (await self.get(task_id, tenant=tenant)).status
        if status in ("completed", "failed"):
            raise ConflictError(f"The task is {status} already.")

    async def logs(self, task_id: str, *, tenant: str, limit: int, offset: int) -> LogLines:
        """What all attempts of a task logged, oldest first.

        Raises:
            NotFoundError: this tenant has no such task.
            UnreachableError: Prefect, which keeps the logs, does not answer.
        """
        runs = await self._store.flow_runs(_task_id(task_id), tenant)
        if runs is None:
            raise NotFoundError("There is no task with this id.")
        lines: list[LogLine] = []
        while runs and len(lines) < limit:
            wanted = min(limit - len(lines), PAGE)
            page = await self._gateway.logs(runs, limit=wanted, offset=offset + len(lines))
            for line in page.lines:
                step = page.step_names.get(line.task_run_id) if line.task_run_id else None
                lines.append(LogLine(line.timestamp, logging.getLevelName(line.level), step, line.message))
            if len(page.lines) < wanted:
                break
        return lines

    async def readiness(self) -> dict[str, str]:
        """What is missing for tasks to be accepted and dispatched, each with a readable reason. Empty = ready."""
        database, prefect = await asyncio.gather(self._database_problem(), self._prefect_problem())
        problems = {"database": database, "prefect": prefect}
        return {what: reason for what, reason in problems.items() if reason is not None}

    async def list(
        self, *, tenant: str, status: str | None = None, template: str | None = None, limit: int = 100, offset: int = 0
    ) -> TaskPage:
        """One page of tasks, newest first, and how many there are in all."""
        return await self._store.page(tenant=tenant, status=status, template=template, limit=limit, offset=offset)

    async def _database_problem(self) -> str | None:
        try:
            async with asyncio.timeout(READY_SECONDS), self._sessions.single() as session:
                if await session.scalar(text("SELECT to_regclass('task')")) is None:
                    return "the tables are missing; run `python -m api.migrate`"
        except (SQLAlchemyError, OSError, TimeoutError) as exc:
            logger.warning("database_not_ready", extra={"reason": type(exc).__name__})
            return "the database does not answer"
        return None

    async def _prefect_problem(self) -> str | None:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return await self._gateway.problem(self._settings.work_pool)
        except TimeoutError:
            return "Prefect does not answer"


def _task_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise NotFoundError("There is no task with this id.") from exc


def _upstream_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise UnknownDependencyError(f"depends_on: there is no task {text[:MAX_SHOWN_ID]!r}.") from exc
