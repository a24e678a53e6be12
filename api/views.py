"""What the API shows of a task, and what it is given to make one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from ai_task_orchestra.template import TemplateSpec

OnDependencyFailure = Literal["cancel", "run"]

STATUSES: Final = ("queued", "running", "completed", "failed", "cancelled")


def batch_status(statuses: Iterable[str]) -> str:
    """One word for many tasks: `queued` until one has begun, `running` until all have ended; then the worst end."""
    found = set(statuses)
    if found <= {"queued"}:
        return "queued"
    if found & {"queued", "running"}:
        return "running"
    return next(status for status in ("failed", "cancelled", "completed") if status in found)


@dataclass(frozen=True)
class NewTask:
    """A checked request. `depends_on` are ids in the order given; repeats count once.

    `refers_to`: what references in the parameters say -> the task's id; those ids are in `depends_on`, too.
    """

    template: TemplateSpec
    parameters: dict[str, Any]
    priority: int
    depends_on: list[str]
    on_dependency_failure: OnDependencyFailure
    refers_to: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NewBatchTask:
    """One task of a batch. `id` is chosen by us, `name` by the client; `label` is how messages call it."""

    id: str
    name: str | None
    label: str
    task: NewTask


@dataclass(frozen=True)
class NewBatch:
    """A checked batch in the order of the request; `order` lists positions such that dependencies come first."""

    tasks: list[NewBatchTask]
    order: list[int]


@dataclass(frozen=True)
class AttemptView:
    """One time that work on the task was begun; `outcome` is None while it runs."""

    number: int
    worker: str | None
    started: datetime | None
    ended: datetime | None
    outcome: str | None


@dataclass(frozen=True)
class TaskView:
    """A task as it is now. None = there is no such value (yet).

    In lists `parameters` and `attempts` are empty, and `result`, `error` and `resource_usage` None: they may be large.
    """

    id: str
    status: str
    priority: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    template: str
    parameters: dict[str, Any]
    depends_on: list[str]
    on_dependency_failure: str
    result: Any
    error: dict[str, Any] | None
    resource_usage: dict[str, Any] | None
    attempts: list[AttemptView]
    flow_run_id: str | None
    flow_run_url: str | None
    batch_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class BatchView:
    """A batch as it is now; `tasks` in the order of the request, as in lists, with what they depend on."""

    id: str
    created_at: datetime
    tasks: list[TaskView]

    @property
    def counts(self) -> dict[str, int]:
        """How many tasks have each of the five statuses."""
        found = Counter(task.status for task in self.tasks)
        return {status: found[status] for status in STATUSES}

    @property
    def status(self) -> str:
        """`queued` until one has begun, `running` until all have ended; then the worst end counts."""
        return batch_status(task.status for task in self.tasks)


@dataclass(frozen=True)
class BatchSubmission:
    """`ids` in the order of the request, `names` of those that have one. `created`: see `Submission`."""

    id: str
    created_at: datetime
    ids: list[str]
    names: dict[str, str]
    created: bool


@dataclass(frozen=True)
class Submission:
    """`created` is False when an Idempotency-Key was seen before: `task` is then the earlier one."""

    task: TaskView
    created: bool


@dataclass(frozen=True)
class LogLine:
    """One line of a task's log; `step` is None for lines of the flow itself."""

    timestamp: datetime
    level: str
    step: str | None
    message: str
