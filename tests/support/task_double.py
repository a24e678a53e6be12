"""The API core in memory: what `api.service.TaskService` promises, without a database and without Prefect."""

from __future__ import annotations

import builtins
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ai_task_orchestra.errors import (
    ConflictError,
    DependencyFailedError,
    IdempotencyMismatchError,
    NotFoundError,
    UnknownDependencyError,
)
from api.auth import Identity
from api.views import LogLine, NewTask, Submission, TaskView
from tests.support.batch_double import InMemoryBatches

FINAL = ("completed", "failed", "cancelled")


class InMemoryTasks:
    """Tasks that never run by themselves: tests move them with `change`."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskView] = {}
        self.tenants: dict[str, str] = {}
        self.lines: dict[str, list[LogLine]] = {}
        self.missing: dict[str, str] = {}
        self.broken: Exception | None = None
        self._keys: dict[tuple[str, str], tuple[str | None, str]] = {}
        self._now = datetime(2025, 8, 9, 10, 30, tzinfo=UTC)

    def change(self, task_id: str, **fields: Any) -> TaskView:
        """What the mirror would have written."""
        self.tasks[task_id] = replace(self.tasks[task_id], **fields)
        return self.tasks[task_id]

    def tick(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now

    async def submit(
        self, new: NewTask, *, tenant: str, idempotency_key: str | None = None, body_hash: str | None = None
    ) -> Submission:
        self._fail_if_broken()
        if idempotency_key is not None and (known := self._keys.get((tenant, idempotency_key))):
            if known[0] != body_hash:
                raise IdempotencyMismatchError
            return Submission(self.tasks[known[1]], False)
        for parent in new.depends_on:
            self.check_dependency(parent, tenant, new.on_dependency_failure)
        task_id = str(uuid.uuid4())
        if idempotency_key is not None:
            self._keys[tenant, idempotency_key] = (body_hash, task_id)
        return Submission(self.add(task_id, new, tenant), True)

    def add(self, task_id: str, new: NewTask, tenant: str) -> TaskView:
        """Write a task that was checked."""
        self.tenants[task_id] = tenant
        self.tasks[task_id] = TaskView(
            id=task_id,
            status="queued",
            priority=new.priority,
            created_at=self.tick(),
            started_at=None,
            completed_at=None,
            template=new.template.name,
            parameters=new.parameters,
            depends_on=list(new.depends_on),
            on_dependency_failure=new.on_dependency_failure,
            result=None,
            error=None,
            resource_usage=None,
            attempts=[],
            flow_run_id=None,
            flow_run_url=None,
        )
        return self.tasks[task_id]

    async def get(self, task_id: str, *, tenant: str) -> TaskView:
        self._fail_if_broken()
        if self.tenants.get(task_id) != tenant:
            raise NotFoundError("There is no task with this id.")
        return self.tasks[task_id]

    async def list(
        self, *, tenant: str, status: str | None = None, template: str | None = None, limit: int = 100, offset: int = 0
    ) -> tuple[builtins.list[TaskView], int]:
        self._fail_if_broken()
        found = [
            task
            for task in reversed(self.tasks.values())
            if self.tenants[task.id] == tenant and status in (None, task.status) and template in (None, task.template)
        ]
        return found[offset : offset + limit], len(found)

    async def by_status(self, *, tenant: str, limit: int = 100) -> dict[str, builtins.list[TaskView]]:
        groups: dict[str, builtins.list[TaskView]] = {}
        for task in (await self.list(tenant=tenant, limit=10**9))[0]:
            groups.setdefault(task.status, []).append(task)
        return {status: tasks[:limit] for status, tasks in groups.items()}

    async def change_priority(self, task_id: str, priority: int, *, tenant: str) -> TaskView:
        task = await self.get(task_id, tenant=tenant)
        if task.status != "queued":
            raise ConflictError(f"Only queued tasks have a priority to change; this one is {task.status}.")
        return self.change(task_id, priority=priority)

    async def cancel(self, task_id: str, *, tenant: str) -> None:
        task = await self.get(task_id, tenant=tenant)
        if task.status in ("completed", "failed"):
            raise ConflictError(f"The task is {task.status} already.")
        if task.status != "cancelled":
            self.change(task_id, status="cancelled", completed_at=self.tick())

    async def logs(self, task_id: str, *, tenant: str, limit: int, offset: int) -> builtins.list[LogLine]:
        await self.get(task_id, tenant=tenant)
        return self.lines.get(task_id, [])[offset : offset + limit]

    async def readiness(self) -> dict[str, str]:
        return self.missing

    def check_dependency(self, parent: str, tenant: str, policy: str) -> None:
        if self.tenants.get(parent) != tenant:
            raise UnknownDependencyError(f"depends_on: there is no task {parent!r}.")
        if self.tasks[parent].status in ("failed", "cancelled") and policy == "cancel":
            raise DependencyFailedError(f"depends_on: task {parent} is {self.tasks[parent].status}.")

    def _fail_if_broken(self) -> None:
        if self.broken is not None:
            raise self.broken


class InMemoryKeys:
    """Stored keys by hash."""

    def __init__(self) -> None:
        self.by_hash: dict[str, Identity] = {}
        self.asked: list[str] = []

    async def find(self, key_hash: str) -> Identity | None:
        self.asked.append(key_hash)
        return self.by_hash.get(key_hash)

    async def count_usable(self) -> int:
        return len(self.by_hash)


class DoubleCore:
    """What `create_app(core_factory=...)` needs."""

    def __init__(self) -> None:
        self.service = InMemoryTasks()
        self.batches = InMemoryBatches(self.service)
        self.sessions = InMemoryKeys()
        self.is_open = False

    @contextlib.asynccontextmanager
    async def open(self, settings: Any, library: Any) -> AsyncIterator[DoubleCore]:
        self.is_open = True
        try:
            yield self
        finally:
            self.is_open = False
