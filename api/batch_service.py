"""What the REST API may ask about batches."""

from __future__ import annotations

import logging
import uuid
from uuid import UUID

from ai_task_orchestra.errors import ForbiddenTemplateError, NotFoundError
from ai_task_orchestra.settings import Settings
from api.batch_store import BatchAcceptance, BatchRow, BatchStore
from api.identity import INTERNAL, Author
from api.task_store import columns_of
from api.views import BatchSubmission, BatchView, NewBatch, NewBatchTask

logger = logging.getLogger(__name__)


class BatchService:
    """Batches of one tenant at a time: another tenant's are not found."""

    def __init__(self, settings: Settings, store: BatchStore) -> None:
        self._settings, self._store = settings, store

    async def submit(
        self,
        new: NewBatch,
        *,
        tenant: str,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        by: Author = INTERNAL,
    ) -> BatchSubmission:
        """Accept all tasks of a batch or none. When this returns they are durable; Prefect need not be there.

        Priorities above what the author's key may ask for are lowered to that.

        Raises:
            ForbiddenTemplateError, QueueLimitError: the author's key may not do this, or not now.
            UnknownDependencyError (NotFoundError), DependencyFailedError (ConflictError): see `depends_on`.
            IdempotencyMismatchError, IdempotencyBusyError: see `idempotency_key`.
        """
        acceptance = BatchAcceptance(
            id=uuid.uuid4(),
            tenant=tenant,
            task_ids=[UUID(task.id) for task in new.tasks],
            names={task.name: task.id for task in new.tasks if task.name is not None},
            rows=[self._row(new.tasks[position], by) for position in new.order],
            by=by,
            idempotency_key=idempotency_key,
            body_hash=body_hash,
        )
        submission = await self._store.accept(acceptance)
        if submission.created:
            logger.info("batch_accepted", extra={"batch_id": submission.id, "tasks": len(submission.ids)})
        return submission

    async def get(self, batch_id: str, *, tenant: str) -> BatchView:
        """A batch with its tasks.

        Raises:
            NotFoundError: this tenant has no such batch.
        """
        batch = await self._store.get(UUID(batch_id), tenant)
        if batch is None:
            raise NotFoundError("There is no batch with this id.")
        return batch

    async def cancel(self, batch_id: str, *, tenant: str, by: Author = INTERNAL) -> None:
        """Cancel what has not ended; once this returns, that is recorded and will happen.

        Raises:
            NotFoundError: this tenant has no such batch.
        """
        await self.get(batch_id, tenant=tenant)
        await self._store.cancel(UUID(batch_id), by)
        logger.info("batch_cancel_requested", extra={"batch_id": batch_id})

    def _row(self, new: NewBatchTask, by: Author) -> BatchRow:
        task = new.task
        try:
            columns = columns_of(task, self._settings.work_pool, by)
        except ForbiddenTemplateError as exc:
            raise ForbiddenTemplateError(f"{new.label}: {exc.message}") from exc
        return BatchRow(
            id=UUID(new.id),
            columns=columns | {"name": new.name},
            upstream=[UUID(task_id) for task_id in task.depends_on],
            runs_anyway=task.on_dependency_failure == "run",
            label=new.label,
        )
