"""What the API and the workers agree on when they speak through Prefect.

Neither side imports the other; names of queues, states, tags, labels and artifacts are written here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NotRequired, Protocol, TypedDict, runtime_checkable
from uuid import UUID, uuid5

PRIORITIES: Final = range(1, 11)
DEFAULT_PRIORITY: Final = 5

WORKER_TYPE: Final = "orchestra"

# State names. Prefect marks a late run only while its state is called "Scheduled": our own names never become Late.
STATE_QUEUED: Final = "Queued"
STATE_HELD: Final = "AwaitingDependencies"
# A Crashed state of this name: the worker stopped before the run had ended, and nothing is wrong with the run.
STATE_HANDED_BACK: Final = "HandedBack"

# Module that holds one flow object per template; deployments name their flow in module form under it.
CATALOG_MODULE: Final = "flows.catalog"

# Labels on a flow run (plain strings).
LABEL_TASK: Final = "orchestra.task"
LABEL_TENANT: Final = "orchestra.tenant"
LABEL_PRIORITY: Final = "orchestra.priority"
# How many nodes the graph of a run begins with: one for each task that it depends on (see `dependency_node`).
LABEL_DEPENDENCIES: Final = "orchestra.dependencies"

# Dependencies beyond this many share one node.
MAX_DEPENDENCY_NODES: Final = 50

# A tag on a flow run whose parameters still refer to results of other tasks: its steps must not run.
TAG_AWAITING_RESULTS: Final = "awaiting-results"

# A step's retries with at most this delay happen inside its flow run; longer ones are attempts of their own.
IN_PLACE_RETRY_SECONDS: Final = 30.0

_CLAIMED_BY: Final = "Claimed by worker "

# The flow whose runs are groups of tasks. No template can have this name.
GROUP_FLOW: Final = "Batch"

# The artifact type under which an attempt reports how it went; its data is an `AttemptReport`.
REPORT_ARTIFACT_TYPE: Final = "orchestra-report"
REPORT_ARTIFACT_DESCRIPTION: Final = "Report: result and resource usage as JSON"
# A report of at most this size travels in the data of the run's final state, of which Prefect makes that same artifact;
# a larger one is sent by itself, since whoever lists flow runs gets their states' data.
MAX_REPORT_IN_STATE_BYTES: Final = 16 * 1024
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


def run_name(template: str, task_id: str) -> str:
    """What the flow runs of a task are called."""
    return f"{template}-{task_id[:8]}"


def run_tags(task_id: str, priority: int, batch_id: UUID | None = None, *more: str) -> tuple[str, ...]:
    """The tags of a task's flow run, by which people find it in Prefect's UI."""
    batch = (f"batch:{batch_id}",) if batch_id else ()
    return (queue_name(priority), f"task:{task_id}", *batch, *more)


def dependency_nodes(dependencies: int) -> int:
    """How many nodes stand for so many dependencies: one each and, where there are too many, one for the rest."""
    return min(dependencies, MAX_DEPENDENCY_NODES) + (1 if dependencies > MAX_DEPENDENCY_NODES else 0)


def dependency_node(flow_run_id: UUID, number: int) -> UUID:
    """The id of the task run that stands for dependency `number` (from 0) in the graph of a flow run.

    The API makes these task runs, the flow's first step waits for them: both only need to know how many there are.
    """
    return uuid5(flow_run_id, f"orchestra.dependency.{number}")


def infrastructure_pid(worker: str, pid: int) -> str:
    """What a flow run carries as its `infrastructure_pid`: who executes it. Set right after it is Running."""
    return f"{worker}:{pid}"


def worker_of_run(infrastructure_pid: str | None) -> str | None:
    """The name of the worker that executes a flow run; None when none of ours does yet."""
    worker, _, pid = (infrastructure_pid or "").rpartition(":")
    return worker if worker and pid.isdecimal() else None


def claim_message(worker: str) -> str:
    """The message of the Pending state by which a worker claims a flow run, and of the Running state after it."""
    return f"{_CLAIMED_BY}{worker}"


def worker_of_claim(message: str | None) -> str | None:
    """The name of the worker that claimed a flow run, from its Pending or Running state's message."""
    return message.removeprefix(_CLAIMED_BY) or None if message and message.startswith(_CLAIMED_BY) else None


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


class StepRetry(TypedDict):
    """The retries of a step whose delay is too long to be waited for in place."""

    retries: int
    delay_seconds: float


class AttemptReport(TypedDict):
    """The data of the report artifact: written by the child before its run reaches a final state.

    The API writes one, without a worker, for a run that it fails itself. `retryable` stands beside `error`: whether
    another attempt may help. `step_retry`: the step that failed has retries of its own which are attempts of the task.
    """

    version: Literal[1]
    task_id: str
    generation: int
    worker: NotRequired[str]
    result: NotRequired[dict[str, Any]]
    error: NotRequired[ErrorReport]
    retryable: NotRequired[bool]
    step_retry: NotRequired[StepRetry]
    resource_usage: NotRequired[dict[str, Any]]


def report_in_state(data: Any) -> Mapping[str, Any] | None:
    """The report in the data of a flow run's state, if it is one."""
    is_report = isinstance(data, Mapping) and "task_id" in data and "generation" in data
    return data if is_report else None


@runtime_checkable
class ReportCarrier(Protocol):
    """A Prefect client that takes a run's report along with its final state, as our worker's children have."""

    def carry_report(self, report: Mapping[str, Any]) -> None:
        """Send the report together with the final state of the run that is being executed."""

    def create_artifact_beside(self, artifact: Any) -> None:
        """Create an artifact (Prefect's `ArtifactCreate`) without being waited for."""
