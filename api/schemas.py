"""Shapes of requests and answers, as the OpenAPI document shows them.

Only `TaskRequest` is used to read anything; answers are written by `api.responses` and held to these shapes by tests.
Answers are typed dictionaries because a field without a value is absent from them, never null.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from ai_task_orchestra.protocol import DEFAULT_PRIORITY, PRIORITIES
from api import examples

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
Priority = Annotated[
    int, Field(ge=PRIORITIES[0], le=PRIORITIES[-1], description="10 is the most urgent, 1 the least.", examples=[5])
]

_LOWERED = "Only if it was more than this API key may ask for: what was asked."


class TaskRequest(BaseModel):
    """A request to run a template."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [examples.TASK_REQUEST]})

    template: str = Field(description="Name of the task template to use.")
    parameters: dict[str, Any] = Field(description="Parameters for the task template.")
    priority: Priority = DEFAULT_PRIORITY
    depends_on: list[str] = Field(
        default_factory=list, description="Ids of the tasks that must be completed first; repeats count once."
    )
    on_dependency_failure: Literal["cancel", "run"] = Field(
        default="cancel", description="What becomes of this task when one of `depends_on` fails or is cancelled."
    )


class BatchTask(TaskRequest):
    """One task of a batch: a request to run a template, with a name that others in the batch may use."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.BATCH_REQUEST["tasks"][1]]})

    # Absent rather than null, as everywhere: the default is no value that could be sent.
    name: str = Field(
        default_factory=str,
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="What others in the batch may call it, in `depends_on` and in references; unique in the batch.",
    )
    depends_on: list[str] = Field(
        default_factory=list, description="Names of tasks in the batch, or ids of tasks; repeats count once."
    )


class BatchRequest(BaseModel):
    """Tasks to be accepted together: all or none."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [examples.BATCH_REQUEST]})

    tasks: list[BatchTask] = Field(min_length=1, description="At most 500, unless the server is set otherwise.")


_Shape = TypeVar("_Shape", bound=type)


def exactly(example: dict[str, Any] | None = None) -> Callable[[_Shape], _Shape]:
    """Makes a typed dictionary's shape refuse other fields, and shows `example` in the document."""
    extra: dict[str, Any] = {} if example is None else {"examples": [example]}
    return with_config(ConfigDict(extra="forbid", json_schema_extra=extra))


@exactly(examples.TASK_ACCEPTED)
class TaskAccepted(TypedDict):
    """A task just accepted."""

    id: str
    status: Status
    priority: Priority
    created_at: datetime
    template: str
    parameters: dict[str, Any]
    depends_on: list[str]
    on_dependency_failure: NotRequired[Annotated[Literal["run"], Field(description="Only if it was asked for.")]]
    requested_priority: NotRequired[Annotated[Priority, Field(description=_LOWERED)]]


@exactly(examples.TASK_LISTED)
class TaskListed(TypedDict):
    """A task in a list."""

    id: str
    status: Status
    priority: Priority
    created_at: datetime
    completed_at: NotRequired[Annotated[datetime, Field(description="When a final status was reached.")]]
    template: str


@exactly(examples.TASK_GROUPED)
class TaskGrouped(TypedDict):
    """A task in the overview by status."""

    id: str
    status: Status
    priority: Priority
    created_at: datetime
    started_at: NotRequired[Annotated[datetime, Field(description="When it first ran.")]]
    completed_at: NotRequired[datetime]
    template: str


@exactly()
class TasksByStatus(TypedDict):
    """The newest tasks of each status."""

    queued: list[TaskGrouped]
    running: list[TaskGrouped]
    completed: list[TaskGrouped]
    failed: list[TaskGrouped]
    cancelled: list[TaskGrouped]


class TaskError(TypedDict):
    """Why a task failed, or why it was cancelled."""

    type: Annotated[str, Field(description="A stable word.", examples=["model_not_found"])]
    message: str
    step: NotRequired[Annotated[str, Field(description="The step that failed.")]]


@exactly()
class Attempt(TypedDict):
    """One time that work on a task was begun."""

    number: int
    worker: NotRequired[str]
    started: NotRequired[datetime]
    ended: NotRequired[datetime]
    outcome: NotRequired[
        Annotated[
            str,
            Field(
                description="How it ended: `completed`, `failed`, `cancelled`, `crashed` (its worker or process was "
                "lost) or `handed_back` (its worker was stopped); absent while it runs."
            ),
        ]
    ]


@exactly(examples.TASK_DETAIL)
class TaskDetail(TypedDict):
    """Everything about a task."""

    id: str
    status: Status
    priority: Priority
    created_at: datetime
    started_at: NotRequired[datetime]
    completed_at: NotRequired[datetime]
    template: str
    parameters: dict[str, Any]
    depends_on: list[str]
    on_dependency_failure: NotRequired[Literal["run"]]
    result: NotRequired[Annotated[Any, Field(description="Its shape is the template's.")]]
    error: NotRequired[TaskError]
    resource_usage: NotRequired[
        Annotated[
            dict[str, Any],
            Field(examples=[{"model_name": "llama3.1:8b", "inference_time_seconds": 45.2, "memory_used_gb": 8.1}]),
        ]
    ]
    attempts: list[Attempt]
    flow_run_id: NotRequired[str]
    flow_run_url: NotRequired[Annotated[str, Field(description="The run's page in the Prefect UI.")]]
    batch_id: NotRequired[Annotated[str, Field(description="The batch it was accepted with.")]]
    name: NotRequired[Annotated[str, Field(description="What its batch calls it.")]]


@exactly(examples.BATCH_ACCEPTED)
class BatchAccepted(TypedDict):
    """A batch just accepted."""

    id: str
    created_at: datetime
    ids: Annotated[list[str], Field(description="The tasks' ids in the order of the request.")]
    tasks: Annotated[dict[str, str], Field(description="The ids of the tasks that have a name, by name.")]
    requested_priorities: NotRequired[
        Annotated[dict[str, Priority], Field(description="By task, if it was more than this API key may ask for.")]
    ]


@exactly()
class BatchMember(TypedDict):
    """A task of a batch."""

    id: str
    name: NotRequired[str]
    status: Status
    priority: Priority
    created_at: datetime
    started_at: NotRequired[datetime]
    completed_at: NotRequired[datetime]
    template: str
    depends_on: list[str]
    on_dependency_failure: NotRequired[Literal["run"]]
    error: NotRequired[TaskError]


@exactly()
class Counts(TypedDict):
    """How many tasks have each status."""

    queued: int
    running: int
    completed: int
    failed: int
    cancelled: int


@exactly(examples.BATCH_DETAIL)
class BatchDetail(TypedDict):
    """A batch as it is now."""

    id: str
    created_at: datetime
    status: Annotated[
        Status,
        Field(
            description="`queued` until a task has begun, `running` until all have ended; then `failed` if one failed, "
            "else `cancelled` if one was cancelled, else `completed`."
        ),
    ]
    counts: Counts
    tasks: Annotated[list[BatchMember], Field(description="In the order of the request.")]


@exactly(examples.PRIORITY_CHANGED)
class PriorityChanged(TypedDict):
    """A task's new priority."""

    id: str
    priority: Priority
    status: Status
    requested_priority: NotRequired[Annotated[Priority, Field(description=_LOWERED)]]


@exactly()
class LogEntry(TypedDict):
    """One line of a task's log."""

    timestamp: datetime
    level: str
    step: NotRequired[str]
    message: str


@exactly()
class ParameterDescription(TypedDict):
    """A parameter of a template."""

    name: str
    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    required: bool
    description: str
    default: NotRequired[JsonValue]
    enum: NotRequired[list[JsonValue]]
    minimum: NotRequired[float]
    maximum: NotRequired[float]
    pattern: NotRequired[str]


@exactly(examples.TEMPLATE_SUMMARY)
class TemplateSummary(TypedDict):
    """A template and its parameters."""

    name: str
    description: str
    parameters: list[ParameterDescription]


@exactly(examples.TEMPLATE_DETAIL)
class TemplateDetail(TypedDict):
    """A template with its steps as written in its YAML."""

    name: str
    description: str
    parameters: list[ParameterDescription]
    steps: list[dict[str, Any]]


@exactly(examples.VALIDATION)
class ValidationAnswer(TypedDict):
    """Whether parameters fit a template."""

    valid: bool
    missing_parameters: list[str]
    invalid_parameters: list[str]
    errors: NotRequired[Annotated[dict[str, str], Field(description="Only when not valid: the reason for each name.")]]


@exactly()
class FieldProblem(TypedDict):
    """What is wrong with one place in a request; the value itself is never repeated."""

    loc: list[str | int]
    msg: str
    type: str


@exactly(examples.PROBLEM)
class Problem(TypedDict):
    """Every error's body."""

    detail: Annotated[str, Field(description="A readable sentence.")]
    code: Annotated[str, Field(description="A stable word for programs.", examples=["not_found"])]
    errors: NotRequired[Annotated[list[FieldProblem], Field(description="Only for code `validation_error`.")]]


@exactly()
class Health(TypedDict):
    """The API serves."""

    status: Literal["ok"]
    version: str


@exactly()
class BrokenTemplate(TypedDict):
    """A template file that was left out."""

    file: NotRequired[str]
    line: NotRequired[int]
    reason: str


@exactly()
class Ready(TypedDict):
    """Database and Prefect answer."""

    status: Literal["ready"]
    templates: Annotated[int, Field(description="How many templates are usable.")]
    broken_templates: list[BrokenTemplate]


@exactly()
class NotReady(TypedDict):
    """Something does not answer; `missing` names it."""

    status: Literal["not ready"]
    detail: str
    code: Literal["not_ready"]
    missing: dict[str, str]
    templates: int
    broken_templates: list[BrokenTemplate]
