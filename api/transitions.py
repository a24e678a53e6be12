"""What a flow run's state means for its task. Pure: no database, no Prefect.

Prefect's final states are not final (it accepts Completed → Cancelled, Crashed → Running, ...), so the task has a
state machine of its own: the first final state wins, and a lost or failed attempt may be followed by another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from random import SystemRandom
from typing import Any, Final, Literal
from uuid import UUID, uuid5

from ai_task_orchestra.protocol import STATE_HANDED_BACK, STATE_HELD
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
#: Workers that stop hand their runs back; more often than this is no accident, and counts as a loss each time.
MAX_HAND_BACKS: Final = 20
#: The error of a task that was interrupted `MAX_LOSSES` times.
POISON: Final = "poison"

#: Each retry waits twice as long as the one before, up to this (or what the template says, if that is longer).
LONGEST_RETRY_SECONDS: Final = 3600.0
#: A longer delay of a step is none that a template can have: its report is not believed.
MOST_SECONDS: Final = 86400.0
#: Up to this share is added to a delay by chance, so that tasks that failed together don't come back together.
RETRY_JITTER: Final = 0.1

RELEASE: Final = "release"
MOVE: Final = "move"

_RANDOM: Final = SystemRandom()


@dataclass(frozen=True)
class Standing:
    """What the row says that a decision depends on."""

    cancel_requested: bool = False
    #: It was answered with 204: whatever the attempt does now, the task ends as cancelled.
    cancel_promised: bool = False
    failures: int = 0
    losses: int = 0
    hand_backs: int = 0
    #: How often each step has used a retry that is an attempt of its own, since the whole task was last retried.
    step_failures: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    retry_delay_seconds: float = 0.0
    on_worker_loss: str = "rerun"


@dataclass(frozen=True)
class Ending:
    """What is known of how an attempt ended, besides the type of its last state.

    `retryable` None: nothing was reported. The step's retries are those that are attempts of their own.
    """

    handed_back: bool = False
    retryable: bool | None = None
    step: str = ""
    step_retries: int = 0
    step_retry_delay_seconds: float = 0.0

    @classmethod
    def of(cls, state: RunState, report: Mapping[str, Any] | None) -> Ending:
        """From the last state and what the attempt reported, which anybody who can reach Prefect may have written."""
        reported = report or {}
        error, retry, retryable = (reported.get(key) for key in ("error", "step_retry", "retryable"))
        step = error.get("step") if isinstance(error, Mapping) else None
        times, delay = (retry.get(key) if isinstance(retry, Mapping) else None for key in ("retries", "delay_seconds"))
        return cls(
            handed_back=state.type == CRASHED and state.name == STATE_HANDED_BACK,
            retryable=retryable if isinstance(retryable, bool) else None,
            step=step if isinstance(step, str) else "",
            step_retries=times if isinstance(times, int) else 0,
            step_retry_delay_seconds=delay if isinstance(delay, int | float) and 0 <= delay <= MOST_SECONDS else 0.0,
        )


@dataclass(frozen=True)
class Show:
    """The task goes on; this is its status."""

    status: str


@dataclass(frozen=True)
class Again:
    """This attempt is over, another follows not before `delay`.

    `cause`: its worker was lost, its worker stopped and handed it back, or its work failed: then either the step named
    still had a retry, or the task.
    """

    delay: timedelta
    cause: Literal["lost", "handed_back", "step_failed", "failed"]
    step: str = ""

    def counted(self, task: Standing) -> dict[str, Any]:
        """The columns that count it."""
        match self.cause:
            case "lost":
                return {"losses": task.losses + 1}
            case "handed_back":
                return {"hand_backs": task.hand_backs + 1}
            case "step_failed":
                return {"step_failures": {**task.step_failures, self.step: task.step_failures.get(self.step, 0) + 1}}
            case "failed":
                return {"failures": task.failures + 1, "step_failures": None}


@dataclass(frozen=True)
class Finish:
    """The task is over. `error_type` is the word to use where the attempt left no report."""

    status: str
    error_type: str | None = None


Decision = Show | Again | Finish


def decide(task: Standing, state_type: str, ending: Ending = Ending()) -> Decision:
    """What follows from the state of the current flow run of a task that is not finished."""
    if state_type in WAITING_STATES:
        return Show("queued")
    if state_type in (RUNNING, CANCELLING):
        return Show("running")
    if state_type == COMPLETED and not task.cancel_promised:
        return Finish("completed")  # even if it was to be cancelled: the work is done
    if state_type == CANCELLED or task.cancel_requested or task.cancel_promised:
        return Finish("cancelled")
    return _after_crash(task, ending) if state_type == CRASHED else _after_failure(task, ending)


def _after_crash(task: Standing, ending: Ending) -> Again | Finish:
    if task.on_worker_loss != "rerun":
        return Finish("failed", "crashed")
    if ending.handed_back and task.hand_backs < MAX_HAND_BACKS:
        return Again(timedelta(0), "handed_back")
    if task.losses + 1 < MAX_LOSSES:
        return Again(timedelta(0), "lost")
    return Finish("failed", POISON)


def _after_failure(task: Standing, ending: Ending) -> Again | Finish:
    """The step's own retries come first; each retry of the whole task gives the steps theirs back."""
    if ending.retryable is False:
        return Finish("failed", "failed")
    used = task.step_failures.get(ending.step, 0)
    if ending.step and used < ending.step_retries:
        return Again(backoff(ending.step_retry_delay_seconds, used), "step_failed", ending.step)
    if task.failures < task.retries:
        return Again(backoff(task.retry_delay_seconds, task.failures), "failed")
    return Finish("failed", "failed")


def backoff(first_seconds: float, used: int) -> timedelta:
    """How long the next retry waits after `used` of them."""
    longest = max(first_seconds, LONGEST_RETRY_SECONDS)
    return timedelta(seconds=min(first_seconds * 2**used, longest))


def outcome(state_type: str, ending: Ending = Ending()) -> str | None:
    """How an attempt ended, in one word; None while it has not."""
    if ending.handed_back:
        return "handed_back"
    words = {COMPLETED: "completed", FAILED: "failed", CRASHED: "crashed", CANCELLED: "cancelled"}
    return words.get(state_type)


def contradicts(decided: str, state_type: str) -> bool:
    """Whether a flow run's state can't be true of a task or an attempt that ended as `decided`."""
    alike = {"crashed": "failed", "handed_back": "failed"}
    word = outcome(state_type)
    return alike.get(word or "", word) != alike.get(decided, decided)


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
    """Why a task failed: what its last attempt reported, else what Prefect says."""
    reason = state.message or f"The flow run ended as {state.name}."
    if error_type == POISON:
        message = f"The task was interrupted {MAX_LOSSES} times and is not run again. The last time: {reason}"
        return {"type": POISON, "message": message}
    reported = (report or {}).get("error")
    if isinstance(reported, Mapping) and isinstance(reported.get("type"), str):
        return dict(reported)
    return {"type": error_type, "message": reason}


def jittered(delay: timedelta) -> timedelta:
    """A retry's delay, made a little longer by chance."""
    return delay * (1 + RETRY_JITTER * _RANDOM.random())
