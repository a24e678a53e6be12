"""What the API and the workers agree on when they speak through Prefect.

Neither side imports the other; names of queues, states, tags, labels and artifacts are written here once.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NotRequired, TypedDict
from uuid import UUID

PRIORITIES: Final = range(1, 11)
DEFAULT_PRIORITY: Final = 5

WORKER_TYPE: Final = "orchestra"

# State names. Prefect marks a late run only while its state is called "Scheduled": our own names never become Late.
STATE_QUEUED: Final = "Queued"
STATE_HELD: Final = "AwaitingDependencies"

# Module that holds one flow object per template; deployments name their flow in module form under it.
CATALOG_MODULE: Final = "flows.catalog"

# Labels on a flow run (plain strings).
LABEL_TASK: Final = "orchestra.task"
LABEL_TENANT: Final = "orchestra.tenant"
LABEL_PRIORITY: Final = "orchestra.priority"

# The artifact type under which an attempt reports how it went; its data is an `AttemptReport`.
REPORT_ARTIFACT_TYPE: Final = "orchestra-report"
# Description of the markdown artifact that shows the answer to people.
ANSWER_ARTIFACT_DESCRIPTION: Final = "Answer"


def queue_name(priority: int) -> str:
    """The work queue of a priority. Priority 10 is the most urgent."""
    return f"priority-{priority}"


def prefect_queue_priority(priority: int) -> int:
    """Prefect's own number for the queue of `priority`: Prefect counts the other way, 1 is the most urgent."""
    return 11 - priority


def priority_of_queue(name: str | None) -> int:
    """The task priority that a flow run's queue stands for; a queue that is not ours counts as the least urgent."""
    prefix, _, number = (name or "").rpartition("-")
    if prefix == "priority" and number.isdecimal() and int(number) in PRIORITIES:
        return int(number)
    return 1


def idempotency_key(task_id: str, generation: int) -> str:
    """The key under which a task's attempt is created in Prefect: creating it twice gives the same flow run."""
    return f"{task_id}:{generation}"


def task_of_run(flow_run_id: UUID | str, key: str | None) -> tuple[str, int]:
    """Task id and generation of a flow run.

    A run that we did not create (Quick Run, schedule, `prefect deployment run`) is a task under its own id,
    generation 1.
    """
    head, _, tail = (key or "").rpartition(":")
    if tail.isdecimal() and _is_uuid(head):
        return head, int(tail)
    return str(flow_run_id), 1


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


class ErrorReport(TypedDict):
    """Why an attempt failed. `type` is a stable word (see `ai_task_orchestra.errors`)."""

    type: str
    message: str
    step: NotRequired[str]


class AttemptReport(TypedDict):
    """The data of the report artifact: written by the child before its run reaches a final state."""

    version: Literal[1]
    task_id: str
    generation: int
    worker: str
    result: NotRequired[dict[str, Any]]
    error: NotRequired[ErrorReport]
    resource_usage: NotRequired[dict[str, Any]]
