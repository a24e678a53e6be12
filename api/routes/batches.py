"""`/tasks/batch` and `/batches`: many tasks in one call."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from ai_task_orchestra.errors import NotFoundError
from api import responses, schemas, submission
from api.auth import Caller, Writer
from api.documentation import BATCH_CREATED, REQUEST_BODY_BATCH, problems
from api.guard import idempotency_key, json_body
from api.identity import Author
from api.responses import JsonAnswer
from api.rooms import OpenRooms
from api.views import BatchSubmission, NewBatch

router = APIRouter(tags=["batches"])


@router.post(
    "/tasks/batch",
    status_code=201,
    response_model=schemas.BatchAccepted,
    summary="Create many tasks",
    responses=BATCH_CREATED | problems(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=REQUEST_BODY_BATCH,
)
async def create_batch(
    caller: Writer,
    rooms: OpenRooms,
    key: Annotated[str | None, Depends(idempotency_key)],
    body: Annotated[Any, Depends(json_body)],
) -> Response:
    """Accept all of these tasks or none. They may depend on each other, and use each other's results, by name."""
    new, body_hash = submission.new_batch(body, rooms)
    made = await rooms.batches.submit(new, tenant=caller.tenant, idempotency_key=key, body_hash=body_hash, by=caller)
    headers = {"Location": f"/api/v1/batches/{made.id}"}
    answer = responses.batch_accepted(made) | _lowered(new, made, caller)
    if made.created:
        return JsonAnswer(answer, 201, headers)
    return JsonAnswer(answer, 200, headers | {"Idempotent-Replayed": "true"})


@router.get("/batches/{batch_id}", response_model=schemas.BatchDetail, summary="Get a batch", responses=problems(404))
async def get_batch(batch_id: str, caller: Caller, rooms: OpenRooms) -> Response:
    """How far a batch is: counts by status, and its tasks."""
    batch = await rooms.batches.get(_batch_id(batch_id), tenant=caller.tenant)
    return JsonAnswer(responses.batch_detail(batch))


@router.delete(
    "/batches/{batch_id}",
    status_code=204,
    response_class=Response,
    summary="Cancel a batch",
    responses=problems(404),
)
async def cancel_batch(batch_id: str, caller: Writer, rooms: OpenRooms) -> Response:
    """Cancel every task of a batch that has not ended, and what depends on it. Doing it again changes nothing."""
    await rooms.batches.cancel(_batch_id(batch_id), tenant=caller.tenant, by=caller)
    return Response(status_code=204)


def _lowered(new: NewBatch, made: BatchSubmission, caller: Author) -> dict[str, Any]:
    """Said only where the key's ceiling lowered priorities: what was asked, by task."""
    asked = {task_id: each.task.priority for task_id, each in zip(made.ids, new.tasks, strict=True)}
    lowered = {task_id: wished for task_id, wished in asked.items() if caller.limits.priority(wished) != wished}
    return {"requested_priorities": lowered} if lowered else {}


def _batch_id(text: str) -> str:
    """A path's batch id; what is not a canonical UUID is nobody's, and never reaches the database."""
    if not submission.well_formed(text):
        raise NotFoundError("There is no batch with this id.")
    return text
