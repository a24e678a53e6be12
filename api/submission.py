"""From a request's body to checked tasks: what `POST /tasks` and `POST /tasks/batch` have in common, and the batch."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from ai_task_orchestra.errors import OrchestraError, ParameterError, UnknownDependencyError
from api import batch_plan, plain_data, references, schemas
from api.errors import ApiError, domain_error, validation_error
from api.rooms import Rooms
from api.views import NewBatch, NewBatchTask, NewTask

MAX_SHOWN_ID: Final = 80
NOBODY: Final[Mapping[str, str]] = {}

_Request = TypeVar("_Request", bound=BaseModel)


def read(body: Any, shape: type[_Request]) -> _Request:
    """The body as a request of this shape.

    Raises:
        ApiError: 422.
    """
    try:
        return shape.model_validate(body)
    except ValidationError as exc:
        raise validation_error(exc.errors(include_input=False, include_url=False), where="body") from exc


def fingerprint(wanted: BaseModel) -> str:
    """What makes two requests the same under one Idempotency-Key: their meaning, not their spelling."""
    canonical = json.dumps(wanted.model_dump(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def new_task(wanted: schemas.TaskRequest, rooms: Rooms, names: Mapping[str, str] = NOBODY) -> NewTask:
    """The checked task. `names`: the ids that local names stand for.

    Raises:
        ApiError, OrchestraError: as `POST /tasks` answers.
    """
    template = rooms.library.get(wanted.template)
    if references.json_size(wanted.parameters) > rooms.settings.max_parameters_bytes:
        detail = f"The parameters are larger than {rooms.settings.max_parameters_bytes} bytes."
        raise ApiError(400, "parameters_too_large", detail)
    check = references.check(template, wanted.parameters)
    if not check.valid:
        raise ParameterError(
            dict.fromkeys(check.missing, "is missing") | dict.fromkeys(check.invalid, "is not valid") | check.errors
        )
    referred = references.tasks_referred_to(wanted.parameters)
    refers_to = {task: _id(task, names, f"parameter {name!r}") for task, name in referred.items()}
    depends_on = [_id(task, names, "depends_on") for task in dict.fromkeys(wanted.depends_on)]
    distinct = list(dict.fromkeys([*depends_on, *refers_to.values()]))
    if len(distinct) > rooms.settings.max_dependencies:
        detail = f"The task depends on more than {rooms.settings.max_dependencies} tasks."
        raise ApiError(422, "too_many_dependencies", detail)
    return NewTask(
        template=template,
        parameters=wanted.parameters,
        priority=wanted.priority,
        depends_on=distinct,
        on_dependency_failure=wanted.on_dependency_failure,
        refers_to=refers_to,
    )


def new_batch(body: Any, rooms: Rooms) -> tuple[NewBatch, str]:
    """The checked batch, and its fingerprint.

    Raises:
        ApiError: as `POST /tasks` answers, with the task in the detail; 422 `too_many_tasks`, `duplicate_name`.
        DependencyCycleError: tasks wait for each other in a circle.
    """
    _check_count(body, rooms.settings.max_batch_tasks)
    wanted = read(body, schemas.BatchRequest)
    names = _names(wanted)
    labels = [item.name or f"tasks[{position}]" for position, item in enumerate(wanted.tasks)]
    tasks = []
    for position, item in enumerate(wanted.tasks):
        label = f"tasks[{position}]" + (f" ({item.name!r})" if item.name else "")
        try:
            task = new_task(item, rooms, names)
            plain_data.refuse_programs(item.parameters)
        except (ApiError, OrchestraError) as exc:
            raise _within(label, exc) from exc
        own_id = names.get(item.name) or str(uuid.uuid4())
        tasks.append(NewBatchTask(own_id, item.name or None, label, task))
    positions = {task.id: position for position, task in enumerate(tasks)}
    waits_for = [[positions[up] for up in task.task.depends_on if up in positions] for task in tasks]
    return NewBatch(tasks, batch_plan.in_order(waits_for, labels)), fingerprint(wanted)


def well_formed(text: str) -> bool:
    """Whether a text is an id as we write it; what is none is nobody's, and never reaches the database."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _id(task: str, names: Mapping[str, str], where: str) -> str:
    """The id of a task that is named by its id or, in a batch, by its name there."""
    found = names.get(task) or (task if well_formed(task) else None)
    if found is None:
        more = " and no task of this name in the batch" if names else ""
        raise UnknownDependencyError(f"{where}: there is no task {task[:MAX_SHOWN_ID]!r}{more}.")
    return found


def _check_count(body: Any, most: int) -> None:
    """Before each of them is looked at."""
    tasks = body.get("tasks") if isinstance(body, dict) else None
    if isinstance(tasks, list) and len(tasks) > most:
        raise ApiError(422, "too_many_tasks", f"A batch has at most {most} tasks.")


def _names(wanted: schemas.BatchRequest) -> dict[str, str]:
    """An id for every name."""
    names: dict[str, str] = {}
    for position, item in enumerate(wanted.tasks):
        if item.name in names:
            detail = f"tasks[{position}]: the name {item.name!r} is given to another task of the batch already."
            raise ApiError(422, "duplicate_name", detail)
        if well_formed(item.name):
            raise ApiError(422, "validation_error", f"tasks[{position}]: a name can't look like the id of a task.")
        if item.name:
            names[item.name] = str(uuid.uuid4())
    return names


def _within(label: str, error: ApiError | OrchestraError) -> ApiError:
    """The same answer, with the task of the batch in its sentence."""
    answer = error if isinstance(error, ApiError) else domain_error(error)
    return ApiError(answer.status, answer.code, f"{label}: {answer.detail}", headers=answer.headers)
