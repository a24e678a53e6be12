"""The rule about order: with a free slot, the most urgent task that can run is the next to be claimed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ai_task_orchestra.protocol import priority_of_queue, worker_of_claim
from tests.histories.evidence import Evidence, Run, Task
from tests.histories.plan import SLOTS, WORKERS

#: Prefect dates a state before it is committed: from this long after it, every poll finds the run.
VISIBLE_SECONDS: Final = 1.0
#: A worker that has asked for the most urgent runs claims those it was told of, as many as it has slots, even if
#: something more urgent turns up meanwhile.
CLAIMS_ALREADY_MADE: Final = WORKERS * SLOTS


@dataclass(frozen=True)
class Claim:
    """A run that waited and was claimed once."""

    task: Task
    priority: int
    visible_at: float
    claimed_at: float


def urgent_tasks_come_first(evidence: Evidence) -> Iterator[str]:
    """While a run waits, no more runs of less urgency are claimed than workers had asked for before it was there.

    Judged only where nothing was broken and no attempt was lost.
    """
    if evidence.faults or any(run.was_lost for run in evidence.runs):
        return
    claims = [claim for run in evidence.runs for claim in _claims(evidence, run)]
    for waiting in claims:
        overtaking = [
            other
            for other in claims
            if other.priority < waiting.priority
            and waiting.visible_at + VISIBLE_SECONDS < other.claimed_at < waiting.claimed_at
        ]
        if len(overtaking) > CLAIMS_ALREADY_MADE:
            numbers = sorted(claim.task.number for claim in overtaking)
            yield f"{waiting.task} of priority {waiting.priority} waited while {numbers} of less urgency were claimed"


def _claims(evidence: Evidence, run: Run) -> Iterator[Claim]:
    """When a run became claimable and when a worker claimed it; nothing if it was claimed several times."""
    claimed = [state for state in run.states if state.type == "PENDING" and worker_of_claim(state.message)]
    if len(claimed) != 1:
        return
    waited = [state for state in run.states if state.type == "SCHEDULED" and state.at <= claimed[0].at]
    if waited:
        visible_at = max(waited[-1].at, waited[-1].scheduled_at or 0.0)
        yield Claim(evidence.by_id[run.task], priority_of_queue(run.queue), visible_at, claimed[0].at)
