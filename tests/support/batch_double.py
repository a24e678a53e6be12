"""Batches in memory: what `api.batch_service.BatchService` promises, on top of the tasks' double."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from ai_task_orchestra.errors import (
    DependencyFailedError,
    ForbiddenTemplateError,
    IdempotencyMismatchError,
    NotFoundError,
    UnknownDependencyError,
)
from api.identity import INTERNAL, Author
from api.views import BatchSubmission, BatchView, NewBatch

if TYPE_CHECKING:
    from tests.support.task_double import InMemoryTasks


class InMemoryBatches:
    """Their tasks are in `tasks`, which moves them."""

    def __init__(self, tasks: InMemoryTasks) -> None:
        self._tasks = tasks
        self._made: dict[str, tuple[str, BatchSubmission]] = {}
        self._keys: dict[tuple[str, str], tuple[str | None, str]] = {}

    async def submit(
        self,
        new: NewBatch,
        *,
        tenant: str,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        by: Author = INTERNAL,
    ) -> BatchSubmission:
        if idempotency_key is not None and (known := self._keys.get((tenant, idempotency_key))):
            if known[0] != body_hash:
                raise IdempotencyMismatchError
            first = self._made[known[1]][1]
            return BatchSubmission(first.id, first.created_at, first.ids, first.names, False)
        for member in new.tasks:
            if not by.limits.allows(member.task.template.name):
                raise ForbiddenTemplateError(f"{member.label}: {ForbiddenTemplateError().message}")
        self._tasks.check_queue(by, adding=len(new.tasks))
        own = {task.id for task in new.tasks}
        for member in new.tasks:
            for parent in set(member.task.depends_on) - own:
                try:
                    self._tasks.check_dependency(parent, tenant, member.task.on_dependency_failure)
                except (UnknownDependencyError, DependencyFailedError) as exc:
                    raise type(exc)(f"{member.label}: {exc.message}") from exc
        batch_id, now = str(uuid.uuid4()), self._tasks.tick()
        for position in new.order:
            member = new.tasks[position]
            made: dict[str, Any] = {"batch_id": batch_id, "name": member.name, "created_at": now}
            self._tasks.add(member.id, member.task, tenant, by)
            self._tasks.change(member.id, **made)
        names = {task.name: task.id for task in new.tasks if task.name}
        submission = BatchSubmission(batch_id, now, [task.id for task in new.tasks], names, True)
        self._made[batch_id] = (tenant, submission)
        if idempotency_key is not None:
            self._keys[tenant, idempotency_key] = (body_hash, batch_id)
        return submission

    async def get(self, batch_id: str, *, tenant: str) -> BatchView:
        owner, submission = self._made.get(batch_id, (None, None))
        if owner != tenant or submission is None:
            raise NotFoundError("There is no batch with this id.")
        return BatchView(batch_id, submission.created_at, [self._tasks.tasks[each] for each in submission.ids])

    def give_away(self, batch_id: str, tenant: str) -> None:
        """Make it another tenant's."""
        self._made[batch_id] = (tenant, self._made[batch_id][1])

    async def cancel(self, batch_id: str, *, tenant: str, by: Author = INTERNAL) -> None:
        for task in (await self.get(batch_id, tenant=tenant)).tasks:
            if task.status in ("queued", "running"):
                await self._tasks.cancel(task.id, tenant=tenant)
