"""`/tasks`: submit, list, look at, reorder and cancel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from ai_task_orchestra.errors import NotFoundError
from api import responses, schemas, submission
from api.auth import Caller, Writer
from api.documentation import COUNTED, CREATED, REQUEST_BODY_TASK, problems
from api.guard import CleanText, Digits, Limit, Offset, idempotency_key, json_body
from api.identity import Author
from api.responses import JsonAnswer
from api.rooms import OpenRooms

router = APIRouter(tags=["tasks"])


@router.post(
    "/tasks",
    status_code=201,
    response_model=schemas.TaskAccepted,
    summary="Create a task",
    responses=CREATED | problems(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=REQUEST_BODY_TASK,
)
async def create_task(
    caller: Writer,
    rooms: OpenRooms,
    key: Annotated[str | None, Depends(idempotency_key)],
    body: Annotated[Any, Depends(json_body)],
) -> Response:
    """Accept a task: durable once this has answered, and run as soon as its priority and dependencies allow."""
    wanted = submission.read(body, schemas.TaskRequest)
    new = submission.new_task(wanted, rooms)
    body_hash = submission.fingerprint(wanted) if key is not None else None
    made = await rooms.tasks.submit(new, tenant=caller.tenant, idempotency_key=key, body_hash=body_hash, by=caller)
    headers = {"Location": f"/api/v1/tasks/{made.task.id}"}
    answer = responses.accepted(made.task) | _lowered(wanted.priority, caller)
    if made.created:
        return JsonAnswer(answer, 201, headers)
    return JsonAnswer(answer, 200, headers | {"Idempotent-Replayed": "true"})


@router.get(
    "/tasks",
    response_model=list[schemas.TaskListed],
    summary="List tasks",
    responses=COUNTED | problems(422),
)
async def list_tasks(
    caller: Caller,
    rooms: OpenRooms,
    status: Annotated[schemas.Status | None, Query(description="Filter by task status.")] = None,
    template: Annotated[CleanText | None, Query(description="Filter by template name.")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Response:
    """Tasks, newest first. The header `X-Total-Count` says how many there are without `limit` and `offset`."""
    tasks, total = await rooms.tasks.list(
        tenant=caller.tenant, status=status, template=template, limit=limit, offset=offset
    )
    return JsonAnswer([responses.listed(task) for task in tasks], headers={"X-Total-Count": str(total)})


# Before `/tasks/{task_id}`: "status" is no task's id.
@router.get(
    "/tasks/status",
    response_model=schemas.TasksByStatus,
    summary="Get tasks by execution status",
    responses=problems(422),
)
async def tasks_by_status(caller: Caller, rooms: OpenRooms, limit: Limit = 100) -> Response:
    """Tasks grouped by their status, each group newest first and at most `limit` long."""
    return JsonAnswer(responses.grouped(await rooms.tasks.by_status(tenant=caller.tenant, limit=limit)))


@router.get("/tasks/{task_id}", response_model=schemas.TaskDetail, summary="Get a task", responses=problems(404))
async def get_task(task_id: str, caller: Caller, rooms: OpenRooms) -> Response:
    """Everything about a task: parameters, result or error, attempts, resource usage, its run in Prefect."""
    return JsonAnswer(responses.detailed(await rooms.tasks.get(_task_id(task_id), tenant=caller.tenant)))


@router.patch(
    "/tasks/{task_id}/priority",
    response_model=schemas.PriorityChanged,
    summary="Update task priority",
    responses=problems(404, 409, 422),
)
async def update_priority(
    task_id: str,
    caller: Writer,
    rooms: OpenRooms,
    priority: Annotated[schemas.Priority, Digits, Query(description="New priority; 10 is the most urgent.")],
) -> Response:
    """Give a queued task another priority. It counts at once: the next free slot sees the new order."""
    task = await rooms.tasks.change_priority(_task_id(task_id), priority, tenant=caller.tenant, by=caller)
    return JsonAnswer(responses.reprioritised(task) | _lowered(priority, caller))


@router.delete(
    "/tasks/{task_id}",
    status_code=204,
    response_class=Response,
    summary="Cancel a task",
    responses=problems(404, 409),
)
async def cancel_task(task_id: str, caller: Writer, rooms: OpenRooms) -> Response:
    """Cancel a queued or running task: its work really stops, and what depends on it is cancelled too."""
    await rooms.tasks.cancel(_task_id(task_id), tenant=caller.tenant, by=caller)
    return Response(status_code=204)


@router.get(
    "/tasks/{task_id}/logs",
    response_model=list[schemas.LogEntry],
    summary="Get a task's log",
    responses=problems(404, 422),
)
async def task_logs(task_id: str, caller: Caller, rooms: OpenRooms, limit: Limit = 200, offset: Offset = 0) -> Response:
    """What the task's steps logged, oldest first."""
    lines = await rooms.tasks.logs(_task_id(task_id), tenant=caller.tenant, limit=limit, offset=offset)
    return JsonAnswer([responses.log_line(line) for line in lines])


def _lowered(wished: int, caller: Author) -> dict[str, int]:
    """Said only where the key's ceiling lowered a priority, so that an ordinary answer is exactly the reference's."""
    return {} if caller.limits.priority(wished) == wished else {"requested_priority": wished}


def _task_id(text: str) -> str:
    """A path's task id; what is not a canonical UUID is nobody's, and never reaches the database."""
    if not submission.well_formed(text):
        raise NotFoundError("There is no task with this id.")
    return text
