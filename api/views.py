"""What the API shows of a task, and what it is given to make one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ai_task_orchestra.template import TemplateSpec

OnDependencyFailure = Literal["cancel", "run"]


@dataclass(frozen=True)
class NewTask:
    """A checked request. `depends_on` are ids in the order given; repeats count once."""

    template: TemplateSpec
    parameters: dict[str, Any]
    priority: int
    depends_on: list[str]
    on_dependency_failure: OnDependencyFailure


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
