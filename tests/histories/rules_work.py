"""Rules about the work itself: what the steps wrote down, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tests.histories.evidence import Evidence, Line, Task

#: How long after it was taken away (or its frozen worker went on) an attempt's processes may still be seen.
STALE_SECONDS: Final = 10.0


def only_known_tasks_work(evidence: Evidence) -> Iterator[str]:
    """No work is done for a task that this history does not have."""
    for line in evidence.lines:
        if line.task not in evidence.by_id and line.task not in evidence.earlier:
            yield f"somebody works for an unknown task: {line}"


def steps_run_in_order(evidence: Evidence) -> Iterator[str]:
    """Within an attempt each step begins once, after the one before it has ended, and ends once."""
    for task in evidence.tasks:
        for attempt in {line.attempt for line in evidence.lines_of[task.id]}:
            written = [line for line in evidence.lines_of[task.id] if line.attempt == attempt and line.kind != "below"]
            expected = [(kind, step) for step in task.shape.steps for kind in ("start", "end")]
            found = [("end" if line.kind == "fail" else line.kind, line.step) for line in written]
            if found != expected[: len(found)]:
                yield f"{task}, attempt {attempt}: steps out of order: {found}"


def dependencies_come_first(evidence: Evidence) -> Iterator[str]:
    """No step begins before all dependencies are completed, or over if the task runs anyway."""
    for task in evidence.tasks:
        begun = [line.place for line in evidence.lines_of[task.id]]
        for upstream in (evidence.by_id[task_id] for task_id in task.depends_on if begun):
            if upstream.status != "completed" and not task.runs_anyway:
                yield f"{task} ran although {upstream} is {upstream.status}"
            late = [line for line in evidence.own_lines(upstream.id) if line.place > min(begun)]
            if late:
                yield f"{task} began before {upstream} was over: {late[0]}"


def doomed_tasks_never_run(evidence: Evidence) -> Iterator[str]:
    """What waits for a failed or cancelled task is cancelled with the cause, and never begins."""
    for task in evidence.tasks:
        upstream = [evidence.by_id[task_id] for task_id in task.depends_on]
        if task.runs_anyway or all(one.status == "completed" for one in upstream):
            continue
        asked = any(call.outcome != "no" for call in evidence.calls_for("cancel", task.id))
        cause = (task.error or {}).get("type")
        if task.status != "cancelled" or (cause != "dependency_failed" and not asked):
            yield f"{task} can't run, and is {task.status} with error {task.error}"


def completed_work_stays_done(evidence: Evidence) -> Iterator[str]:
    """Nothing of a task begins after the attempt that completed it, or after it was shown as over."""
    for task in evidence.tasks:
        completed = [attempt.generation for attempt in task.attempts if attempt.outcome == "completed"]
        own = evidence.own_lines(task.id)
        for generation in completed:
            done = [line.place for line in own if line.attempt == generation]
            again = [line for line in own if done and line.kind == "start" and line.place > max(done)]
            if again:
                yield f"{task} was completed, and began again: {again[0]}"
        shown = [call.answered for call in evidence.calls if _is_over(call.seen.get(task.id))]
        late = [line for line in own if shown and line.kind == "start" and line.place > min(shown)]
        if late:
            yield f"{task} was shown as {task.status}, and began again: {late[0]}"


def _is_over(fields: object) -> bool:
    return isinstance(fields, dict) and fields["status"] in ("completed", "failed", "cancelled")


def attempts_follow_each_other(evidence: Evidence) -> Iterator[str]:
    """One attempt's work is over before the next one's begins, but for what a worker that is cut off still does."""
    for task in evidence.tasks:
        lines = evidence.lines_of[task.id]
        for earlier, later in pairwise(sorted({line.attempt for line in lines})):
            first = min(line.place for line in lines if line.attempt == later)
            late = [line for line in lines if line.attempt == earlier and line.place > first]
            if late and not _is_stale(evidence, task, late):
                yield f"{task}: attempt {earlier} still worked when attempt {later} had begun: {late[0]}"


def _is_stale(evidence: Evidence, task: Task, lines: list[Line]) -> bool:
    return all(evidence.taken_away_at(task.id, line.attempt) is not None for line in lines)


def lost_attempts_end(evidence: Evidence) -> Iterator[str]:
    """Soon after an attempt was taken away, at the latest when its frozen worker goes on, it does nothing any more."""
    for line in (line for task in evidence.tasks for line in evidence.lines_of[task.id]):
        taken_at = evidence.taken_away_at(line.task, line.attempt)
        if taken_at is None or line.at <= taken_at:
            continue
        worker = _worker_of(evidence, line)
        end = max(evidence.thawed_at(worker, taken_at), taken_at) + STALE_SECONDS
        if line.at > end:
            task = evidence.by_id[line.task]
            yield f"{task}: attempt {line.attempt} was taken away {line.at - taken_at:.1f} s before {line}"


def _worker_of(evidence: Evidence, line: Line) -> str | None:
    for attempt in evidence.by_id[line.task].attempts:
        if attempt.generation == line.attempt:
            return attempt.worker
    return None


def cancelled_tasks_are_silent(evidence: Evidence) -> Iterator[str]:
    """After a task is shown as cancelled, none of its processes is alive, but for those of a worker that is cut off."""
    for scan in evidence.scans:
        for task_id, pids in scan.alive.items():
            attempts = {line.attempt for line in evidence.lines_of.get(task_id, []) if line.place < scan.place}
            cut_off = attempts and evidence.taken_away_at(task_id, max(attempts)) is not None
            if pids and not cut_off:
                yield f"{evidence.by_id[task_id]} was shown as cancelled while processes {list(pids)} were alive"


def nothing_is_left(evidence: Evidence) -> Iterator[str]:
    """When everything is over, no task has a process."""
    for task_id, pids in evidence.living.items():
        yield f"{evidence.by_id[task_id]} is over, and processes {list(pids)} are alive"


def attempts_are_bounded(evidence: Evidence) -> Iterator[str]:
    """A task is begun at most as often as its template allows."""
    for task in evidence.tasks:
        attempts = {line.attempt for line in evidence.lines_of[task.id]}
        allowed = task.shape.losses + task.shape.retries
        if len(attempts) > allowed:
            yield f"{task} was begun {len(attempts)} times, {allowed} are allowed"
