"""What our side knows of Prefect's objects: the fields we use, parsed from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from ai_task_orchestra.protocol import STATE_HELD, report_in_state, worker_of_claim, worker_of_run

SCHEDULED: Final = "SCHEDULED"
PENDING: Final = "PENDING"
RUNNING: Final = "RUNNING"
PAUSED: Final = "PAUSED"
CANCELLING: Final = "CANCELLING"
COMPLETED: Final = "COMPLETED"
FAILED: Final = "FAILED"
CRASHED: Final = "CRASHED"
CANCELLED: Final = "CANCELLED"

FINAL_STATES: Final = frozenset({COMPLETED, FAILED, CRASHED, CANCELLED})
WAITING_STATES: Final = frozenset({SCHEDULED, PENDING, PAUSED})
ACTIVE_STATES: Final = (PENDING, RUNNING, CANCELLING)


@dataclass(frozen=True)
class RunState:
    """A state of a flow run. `transition_id` is what its proposer called the change."""

    id: UUID
    type: str
    name: str
    message: str | None
    timestamp: datetime
    transition_id: UUID | None = None
    scheduled_time: datetime | None = None

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> RunState:
        details = data.get("state_details") or {}
        return cls(
            id=UUID(data["id"]),
            type=data["type"],
            name=data.get("name") or data["type"].capitalize(),
            message=data.get("message"),
            timestamp=required_moment(data["timestamp"]),
            transition_id=_uuid(details.get("transition_id")),
            scheduled_time=moment(details.get("scheduled_time")),
        )

    @property
    def is_being_held(self) -> bool:
        """Created, and about to be scheduled for the far future by whoever created it: nobody's work to stop."""
        return self.type == PENDING and self.name == STATE_HELD


@dataclass(frozen=True)
class FlowRun:
    """A flow run as Prefect had it when it was read."""

    id: UUID
    flow_id: UUID
    deployment_id: UUID | None
    idempotency_key: str | None
    state: RunState
    created: datetime
    start_time: datetime | None
    next_scheduled_start_time: datetime | None
    work_pool: str | None
    work_queue: str | None
    parameters: dict[str, Any]
    labels: Mapping[str, Any]
    auto_scheduled: bool
    infrastructure_pid: str | None = None
    #: What its final state carries of the attempt, if that is small.
    report: Mapping[str, Any] | None = None

    @property
    def worker(self) -> str | None:
        """The worker of ours that runs it, or has claimed it: its states say so before the run itself does."""
        claimed_by = worker_of_claim(self.state.message) if self.state.type in (PENDING, RUNNING) else None
        return worker_of_run(self.infrastructure_pid) or claimed_by

    @property
    def began(self) -> datetime | None:
        """When it was first Running. Prefect takes the end of a run that never was for its start, too."""
        never = self.state.type in FINAL_STATES and self.start_time == self.state.timestamp
        return None if never else self.start_time

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> FlowRun | None:
        """None for a run without a state: it is still being made."""
        if not data.get("state"):
            return None
        return cls(
            id=UUID(data["id"]),
            flow_id=UUID(data["flow_id"]),
            deployment_id=_uuid(data.get("deployment_id")),
            idempotency_key=data.get("idempotency_key"),
            state=RunState.parse(data["state"]),
            created=required_moment(data["created"]),
            start_time=moment(data.get("start_time")),
            next_scheduled_start_time=moment(data.get("next_scheduled_start_time")),
            work_pool=data.get("work_pool_name"),
            work_queue=data.get("work_queue_name"),
            parameters=dict(data.get("parameters") or {}),
            labels=dict(data.get("labels") or {}),
            auto_scheduled=bool(data.get("auto_scheduled")),
            infrastructure_pid=data.get("infrastructure_pid"),
            report=report_in_state(data["state"].get("data")),
        )


@dataclass(frozen=True)
class Deployment:
    """A template's deployment."""

    id: UUID
    flow_id: UUID
    name: str
    work_pool: str | None

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Deployment:
        return cls(UUID(data["id"]), UUID(data["flow_id"]), data["name"], data.get("work_pool_name"))


@dataclass(frozen=True)
class NewRun:
    """A flow run to create. Creating the same `idempotency_key` again gives the run that is there."""

    name: str
    idempotency_key: str
    parameters: dict[str, Any]
    work_queue: str
    tags: tuple[str, ...]
    labels: Mapping[str, str]
    state_type: str
    state_name: str
    scheduled_time: datetime | None = None
    state_message: str | None = None


@dataclass(frozen=True)
class StateAnswer:
    """Prefect's answer to a proposed state; `state` is the one the run has now, None after ABORT."""

    accepted: bool
    state: RunState | None
    reason: str | None = None


@dataclass(frozen=True)
class RunFilter:
    """Which flow runs to list; None = any."""

    work_pools: tuple[str, ...] = ()
    state_types: tuple[str, ...] | None = None
    expected_after: datetime | None = None
    ended_after: datetime | None = None


@dataclass(frozen=True)
class Worker:
    """A worker of a pool. The heartbeat's time is by Prefect's clock."""

    name: str
    last_heartbeat: datetime | None


@dataclass(frozen=True)
class RunEvent:
    """A hint that a flow run's state changed; it may come before the change can be read."""

    flow_run_id: UUID
    state_id: UUID | None
    occurred: datetime
    state_name: str | None = None


@dataclass(frozen=True)
class RunLog:
    """One line of a flow run's log."""

    timestamp: datetime
    level: int
    message: str
    task_run_id: UUID | None = None


@dataclass(frozen=True)
class LogPage:
    """Lines, oldest first, and the names of the task runs in them that Prefect knows already."""

    lines: list[RunLog]
    step_names: dict[UUID, str] = field(default_factory=dict)


def moment(text: str | None) -> datetime | None:
    """A time of Prefect's JSON, aware."""
    if not text:
        return None
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def required_moment(text: str) -> datetime:
    found = moment(text)
    if found is None:
        raise ValueError("a time is missing in Prefect's answer")
    return found


def _uuid(text: str | None) -> UUID | None:
    return UUID(text) if text else None
