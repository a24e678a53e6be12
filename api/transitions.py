"""What a flow run's state means for its task. Pure: no database, no Prefect.

Prefect's final states are not final (it accepts Completed → Cancelled, Crashed → Running, ...), so the task has a
state machine of its own: the first final state wins, and a lost or failed attempt may be followed by another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

from ai_task_orchestra.protocol import STATE_HELD
from api.models import Phase
from api.prefect_types import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    CRASHED,
    FAILED,
    PENDING,
    RUNNING,
    SCHEDULED,
    WAITING_STATES,
    RunState,
)

#: A task whose worker was lost this many times is not run again.
MAX_LOSSES: Final = 3

RELEASE: Final = "release"
MOVE: Final = "move"


@dataclass(frozen=True)
class Standing:
    """What the row says that a decision depends on."""

    cancel_requested: bool = False
    failures: int = 0
    losses: int = 0
    retries: int = 0
    retry_delay_seconds: float = 0.0
    on_worker_loss: str = "rerun"


@dataclass(frozen=True)
class Show:
    """The task goes on; this is its status."""

    status: str


@dataclass(frozen=True)
class Again:
    """This attempt is over, another follows not before `delay`. `lost`: its worker is gone; else its work failed."""

    delay: timedelta
    lost: bool


@dataclass(frozen=True)
class Finish:
    """The task is over. `error_type` is the word to use where the attempt left no report."""

    status: str
    error_type: str | None = None


Decision = Show | Again | Finish


def decide(task: Standing, state_type: str) -> Decision:
    """What follows from the state of the current flow run of a task that is not finished."""
    if state_type in WAITING_STATES:
        return Show("queued")
    if state_type in (RUNNING, CANCELLING):
        return Show("running")
    if state_type == COMPLETED:
        return Finish("completed")  # even if it was to be cancelled: the work is done
    if state_type == CANCELLED or task.cancel_requested:
        return Finish("cancelled")
    if state_type == CRASHED:
        if task.on_worker_loss == "rerun" and task.losses + 1 < MAX_LOSSES:
            return Again(timedelta(0), lost=True)
        return Finish("failed", "crashed")
    if task.failures < task.retries:
        return Again(timedelta(seconds=task.retry_delay_seconds), lost=False)
    return Finish("failed", "failed")


def outcome(state_type: str) -> str | None:
    """How an attempt ended, in one word; None while it has not."""
    words = {COMPLETED: "completed", FAILED: "failed", CRASHED: "crashed", CANCELLED: "cancelled"}
    return words.get(state_type)


def contradicts(status: str, state_type: str) -> bool:
    """Whether a flow run's state can't be true of a task that ended as `status`."""
    word = outcome(state_type)
    if word == "crashed":
        word = "failed"
    return word != status


def phase_of(run_id: UUID, state: RunState, present: str) -> str:
    """The phase that a flow run's state shows; `present` is the row's."""
    if state.name == STATE_HELD:
        return Phase.HELD if state.type == SCHEDULED else Phase.CREATING
    if state.type == PENDING and state.transition_id == transition_id(run_id, RELEASE):
        return Phase.HELD  # a release is under way
    if state.type == CANCELLING:
        return present
    return Phase.READY


def transition_id(run_id: UUID, purpose: str) -> UUID:
    """The id under which we propose a state, the same after a crash: Prefect then knows that it was us before."""
    return uuid5(run_id, f"orchestra.{purpose}")


def error_of(state: RunState, error_type: str, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Why an attempt failed: what it reported, else what Prefect says."""
    reported = (report or {}).get("error")
    if isinstance(reported, Mapping) and isinstance(reported.get("type"), str):
        return dict(reported)
    return {"type": error_type, "message": state.message or f"The flow run ended as {state.name}."}


def retry_at(now: datetime, delay: timedelta) -> datetime | None:
    """When the next attempt may begin; None = at once."""
    return now + delay if delay > timedelta(0) else None
