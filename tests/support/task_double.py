"""The API core in memory: what `api.service.TaskService` promises, without a database and without Prefect."""

from __future__ import annotations

import builtins
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ai_task_orchestra.api_keys import generate_key, key_hash
from ai_task_orchestra.errors import (
    ConflictError,
    DependencyFailedError,
    ForbiddenTemplateError,
    IdempotencyMismatchError,
    NotFoundError,
    QueueLimitError,
    UnknownDependencyError,
)
from api.audit import AuditEntry, AuditFilter
from api.identity import INTERNAL, Author, Identity
from api.keys import LONGEST_OVERLAP, OVERLAP, NewKey, StoredKey
from api.views import LogLine, NewTask, Submission, TaskView
from tests.support.batch_double import InMemoryBatches

FINAL = ("completed", "failed", "cancelled")


class InMemoryTasks:
    """Tasks that never run by themselves: tests move them with `change`."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskView] = {}
        self.tenants: dict[str, str] = {}
        self.authors: dict[str, Author] = {}
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
        self,
        new: NewTask,
        *,
        tenant: str,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        by: Author = INTERNAL,
    ) -> Submission:
        self._fail_if_broken()
        if not by.limits.allows(new.template.name):
            raise ForbiddenTemplateError
        if idempotency_key is not None and (known := self._keys.get((tenant, idempotency_key))):
            if known[0] != body_hash:
                raise IdempotencyMismatchError
            return Submission(self.tasks[known[1]], False)
        for parent in new.depends_on:
            self.check_dependency(parent, tenant, new.on_dependency_failure)
        self.check_queue(by)
        task_id = str(uuid.uuid4())
        if idempotency_key is not None:
            self._keys[tenant, idempotency_key] = (body_hash, task_id)
        return Submission(self.add(task_id, new, tenant, by), True)

    def add(self, task_id: str, new: NewTask, tenant: str, by: Author = INTERNAL) -> TaskView:
        """Write a task that was checked."""
        self.tenants[task_id], self.authors[task_id] = tenant, by
        self.tasks[task_id] = TaskView(
            id=task_id,
            status="queued",
            priority=by.limits.priority(new.priority),
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

    async def change_priority(self, task_id: str, priority: int, *, tenant: str, by: Author = INTERNAL) -> TaskView:
        task = await self.get(task_id, tenant=tenant)
        if task.status != "queued":
            raise ConflictError(f"Only queued tasks have a priority to change; this one is {task.status}.")
        return self.change(task_id, priority=by.limits.priority(priority))

    async def cancel(self, task_id: str, *, tenant: str, by: Author = INTERNAL) -> None:
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

    def check_queue(self, by: Author, adding: int = 1) -> None:
        mine = [self.tasks[task_id] for task_id, author in self.authors.items() if author.identity == by.identity]
        queued = [task for task in mine if task.status == "queued"]
        if by.limits.max_queued is not None and len(queued) + adding > by.limits.max_queued:
            raise QueueLimitError

    def check_dependency(self, parent: str, tenant: str, policy: str) -> None:
        if self.tenants.get(parent) != tenant:
            raise UnknownDependencyError(f"depends_on: there is no task {parent!r}.")
        if self.tasks[parent].status in ("failed", "cancelled") and policy == "cancel":
            raise DependencyFailedError(f"depends_on: task {parent} is {self.tasks[parent].status}.")

    def _fail_if_broken(self) -> None:
        if self.broken is not None:
            raise self.broken


class InMemoryKeys:
    """Stored keys: those made as the API makes them, and whatever a test puts into `by_hash`."""

    def __init__(self) -> None:
        self.by_hash: dict[str, Identity] = {}
        self.asked: list[str] = []
        self.used: dict[uuid.UUID, datetime] = {}
        self._stored: dict[str, StoredKey] = {}

    async def find(self, key_hash: str) -> Identity | None:
        self.asked.append(key_hash)
        return self.by_hash.get(key_hash)

    async def count_usable(self) -> int:
        return len(self.by_hash)

    async def note_used(self, uses: Mapping[uuid.UUID, datetime]) -> None:
        self.used |= uses

    async def create(self, new: NewKey, *, by: Author) -> tuple[StoredKey, str]:
        new.check()
        key = generate_key()
        stored = StoredKey(
            id=str(uuid.uuid4()),
            name=new.name,
            tenant=new.tenant,
            prefix=key[:8],
            scopes=tuple(sorted(set(new.scopes))),
            limits=new.limits,
            created_at=datetime.now(UTC),
            expires_at=new.expires_at,
            revoked_at=None,
            last_used_at=None,
            previous_expires_at=None,
        )
        return self._put(stored, key), key

    async def list(self, *, limit: int, offset: int) -> builtins.list[StoredKey]:
        return list(self._stored.values())[offset : offset + limit]

    async def count(self) -> int:
        return len(self._stored)

    async def get(self, key_id: uuid.UUID) -> StoredKey:
        if str(key_id) not in self._stored:
            raise NotFoundError("There is no such API key.")
        return self._stored[str(key_id)]

    async def revoke(self, key_id: uuid.UUID, *, by: Author) -> StoredKey:
        stored = await self.get(key_id)
        self._drop(key_id)
        self._stored[stored.id] = replace(stored, revoked_at=stored.revoked_at or datetime.now(UTC))
        return self._stored[stored.id]

    async def rotate(self, key_id: uuid.UUID, *, overlap: timedelta = OVERLAP, by: Author) -> tuple[StoredKey, str]:
        assert overlap <= LONGEST_OVERLAP
        stored = await self.get(key_id)
        if stored.status != "active":
            raise ConflictError(f"The API key is {stored.status}.")
        if not overlap:
            self._drop(key_id)
        key = generate_key()
        until = datetime.now(UTC) + overlap if overlap else None
        return self._put(replace(stored, prefix=key[:8], previous_expires_at=until), key), key

    def _put(self, stored: StoredKey, key: str) -> StoredKey:
        self._stored[stored.id] = stored
        self.by_hash[key_hash(key)] = Identity(
            stored.name, stored.tenant, frozenset(stored.scopes), uuid.UUID(stored.id), stored.limits, stored.expires_at
        )
        return stored

    def _drop(self, key_id: uuid.UUID) -> None:
        self.by_hash = {known: who for known, who in self.by_hash.items() if who.key_id != key_id}


class EmptyAudit:
    """The audit of a core that writes none; what a real one holds is tested on PostgreSQL."""

    async def page(self, which: AuditFilter, *, limit: int, offset: int) -> list[AuditEntry]:
        return []


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
