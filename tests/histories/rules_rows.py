"""Rules about our rows and Prefect's runs: everything has ended, as it should have, and both say the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ai_task_orchestra.protocol import queue_name
from tests.histories.evidence import FINAL, Evidence, Run, Task

_STATUS_OF: Final = {"COMPLETED": "completed", "FAILED": "failed", "CRASHED": "failed", "CANCELLED": "cancelled"}


def everything_ends(evidence: Evidence) -> Iterator[str]:
    """Every task reaches a final status, and nothing is left to be done for it."""
    for task in evidence.tasks:
        if task.status not in FINAL:
            yield f"{task} is stuck: {task.status}, generation {task.generation}"
        if task.unfinished:
            yield f"{task} is {task.status}, and has still {', '.join(task.unfinished)}"
        open_attempts = [attempt.generation for attempt in task.attempts if attempt.outcome is None]
        if open_attempts:
            yield f"{task} is {task.status}, and its attempts {open_attempts} have not ended"


def statuses_are_explained(evidence: Evidence) -> Iterator[str]:
    """Completed: all steps ended. Failed: its work did, or its workers were lost. Cancelled: asked for, or doomed."""
    explanations = {"completed": _was_completed, "failed": _has_failed, "cancelled": _was_cancelled}
    for task in evidence.tasks:
        explained = explanations.get(task.status)
        if explained and not explained(evidence, task):
            yield f"{task} is {task.status} for no reason: error {task.error}, attempts {list(task.attempts)}"


def _was_completed(evidence: Evidence, task: Task) -> bool:
    last = _published(task)
    ended = [line.step for line in evidence.lines_of[task.id] if line.attempt == last and line.kind == "end"]
    return not task.shape.fails and tuple(ended) == task.shape.steps


def _has_failed(evidence: Evidence, task: Task) -> bool:
    failures = {line.attempt for line in evidence.lines_of[task.id] if line.kind == "fail"}
    losses = [attempt for attempt in task.attempts if attempt.outcome in ("crashed", "handed_back")]
    return len(failures) > task.shape.retries or len(losses) >= task.shape.losses


def _was_cancelled(evidence: Evidence, task: Task) -> bool:
    asked = any(call.outcome != "no" for call in evidence.calls_for("cancel", task.id))
    upstream = [evidence.by_id[task_id].status for task_id in task.depends_on]
    return asked or (not task.runs_anyway and any(status in ("failed", "cancelled") for status in upstream))


def _is_promised(evidence: Evidence, task: Task) -> bool:
    """Whether it is cancelled and a client was, or may have been, told that it would be."""
    asked = any(call.outcome != "no" for call in evidence.calls_for("cancel", task.id))
    return task.status == "cancelled" and asked


def _published(task: Task) -> int | None:
    completed = [attempt.generation for attempt in task.attempts if attempt.outcome == "completed"]
    return completed[-1] if completed else None


def one_attempt_is_published(evidence: Evidence) -> Iterator[str]:
    """A completed task's result and file are those of the one attempt that completed it; others have no result.

    A cancellation that was accepted counts even if the work turns out to have been done: nothing is published then.
    """
    for task in evidence.tasks:
        completed = [attempt.generation for attempt in task.attempts if attempt.outcome == "completed"]
        expected = {1} if task.status == "completed" else {0, 1} if _is_promised(evidence, task) else {0}
        if len(completed) not in expected:
            yield f"{task} is {task.status}, and its attempts {completed} are completed"
            continue
        if task.status != "completed":
            if task.result is not None:
                yield f"{task} is {task.status}, and has a result"
            continue
        said = f"{task.id}:{completed[0]}\n"
        if task.result != {"output": said}:
            yield f"{task}: the result {task.result} is not that of attempt {completed[0]}"
        if task.shape.stores and evidence.outputs.get(task.number) != said:
            stored = evidence.outputs.get(task.number)
            yield f"{task}: the stored file {stored!r} is not that of attempt {completed[0]}"


def work_is_recorded(evidence: Evidence) -> Iterator[str]:
    """Every attempt that has worked stands among the task's attempts."""
    for task in evidence.tasks:
        recorded = {attempt.generation for attempt in task.attempts}
        worked = {line.attempt for line in evidence.lines_of[task.id]}
        if worked - recorded:
            yield f"{task}: the attempts {sorted(worked - recorded)} worked, and only {sorted(recorded)} are recorded"


def rows_agree_with_prefect(evidence: Evidence) -> Iterator[str]:
    """A task's flow runs are all over; the present one says what the row says, in the queue of its priority."""
    for run in evidence.runs:
        task = evidence.by_id[run.task]
        if run.type not in _STATUS_OF:
            yield f"{task} is {task.status}, and its flow run of generation {run.generation} is {run.type}"
        elif run.generation == task.generation:
            yield from _disagreements(evidence, task, run)
    present = {(run.task, run.generation) for run in evidence.runs}
    for task in evidence.tasks:
        if task.status in ("completed", "failed") and (task.id, task.generation) not in present:
            yield f"{task} is {task.status}, and Prefect has no flow run of its generation {task.generation}"


def _disagreements(evidence: Evidence, task: Task, run: Run) -> Iterator[str]:
    # What a worker that was cut off says later, against what is decided, is written down instead of followed.
    excused = task.audited and run.taken_away_at is not None
    if _STATUS_OF[run.type] != task.status and not excused:
        yield f"{task} is {task.status}, and its flow run is {run.type}"
    if run.queue != queue_name(task.priority) and any(line for line in evidence.lines_of[task.id]):
        yield f"{task} has priority {task.priority}, and its flow run is in {run.queue}"
