"""Rules about what clients were told: every answer agrees with every other one and with what became of the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.histories.evidence import FINAL, Call, Evidence, Task

#: What may be seen of a task once and not differently later.
_LASTING: Final = ("created_at", "started_at", "completed_at", "result")


def no_server_errors(evidence: Evidence) -> Iterator[str]:
    """The API never answers with an error of its own, and without faults it is never out of reach.

    A change of priority may be asked to try again: the flow run that has to move is just being created.
    """
    for call in evidence.calls:
        may_wait = evidence.faults or call.code == 409 or (call.what == "change" and call.code == 503)
        if call.code >= 500 and call.code != 503:
            yield f"{call.what} {dict(call.about)} was answered {call.code}: {call.problem}"
        elif call.outcome == "unknown" and not may_wait:
            yield f"{call.what} {dict(call.about)} had no answer though nothing was broken: {call.code} {call.problem}"


def accepted_posts_are_one_task(evidence: Evidence) -> Iterator[str]:
    """However often a post was sent: accepted means one task, refused means none, unknown means at most one."""
    for number in evidence.posts:
        calls = [call for call in evidence.calls if number in call.numbers]
        rows = [task.id for task in evidence.tasks if task.number == number]
        accepted = {call.accepted[number] for call in calls if number in call.accepted}
        if len(rows) > 1 or len(accepted) > 1:
            yield f"post {number} made several tasks: rows {rows}, answers {sorted(accepted)}"
        elif accepted and rows != list(accepted):
            yield f"post {number} was accepted as {sorted(accepted)}, but the rows are {rows}"
        elif rows and not accepted and not any(call.outcome == "unknown" for call in calls):
            yield f"post {number} was never accepted, and yet there is {rows}"


def batches_are_all_or_none(evidence: Evidence) -> Iterator[str]:
    """Of a batch all tasks are accepted or none."""
    for call in evidence.calls:
        found = [task.number for task in evidence.tasks if task.number in call.numbers]
        if found and len(found) != len(call.numbers):
            yield f"of the batch {call.numbers} only {sorted(found)} exist"


def refused_for_a_reason(evidence: Evidence) -> Iterator[str]:
    """Posts are refused only because a dependency can't be completed any more."""
    for call in evidence.calls:
        if call.outcome == "no" and call.numbers:
            doomed = any(_is_doomed(evidence, number) for number in call.numbers)
            if call.code != 409 or not doomed:
                yield f"posts {call.numbers} were refused without need: {call.code} {call.problem}"


def _is_doomed(evidence: Evidence, number: int) -> bool:
    post = evidence.posts[number]
    upstream = [task.status for task in evidence.tasks if task.number in post.depends_on]
    return not post.runs_anyway and any(status in ("failed", "cancelled") for status in upstream)


def accepted_tasks_are_found(evidence: Evidence) -> Iterator[str]:
    """Once accepted, a task is found by its id and stands in every list."""
    accepted = {task_id: call.answered for call in evidence.calls for task_id in call.accepted.values()}
    for call in evidence.calls:
        if call.code == 404:
            yield f"{call.what} {dict(call.about)}: an accepted task was not found"
        if call.what in ("list", "groups") and call.outcome == "yes":
            missing = [
                task_id for task_id, since in accepted.items() if since < call.asked and task_id not in call.seen
            ]
            if missing:
                yield f"a {call.what} left out {missing}"


def final_answers_stay(evidence: Evidence) -> Iterator[str]:
    """What was shown once stays: a final status with its result and times, and the time of the first start."""
    for task in evidence.tasks:
        seen = [(call, call.seen[task.id]) for call in evidence.calls if task.id in call.seen]
        final = {fields["status"] for _, fields in seen if fields["status"] in FINAL}
        if final - {task.status}:
            yield f"{task} was shown as {sorted(final)}, and its row says {task.status}"
        for earlier, before in seen:
            for later, after in seen:
                if later.asked > earlier.answered:
                    yield from _changes(task, earlier, before, later, after)


def _changes(task: Task, earlier: Call, before: Any, later: Call, after: Any) -> Iterator[str]:
    if before["status"] in FINAL and after["status"] != before["status"]:
        yield f"{task} was {before['status']}, and later {after['status']}"
    if earlier.what == later.what:
        for name in _LASTING:
            if name in before and before[name] != after.get(name):
                yield f"{task} had {name} {before[name]!r}, and later {after.get(name)!r}"


def cancellations_are_obeyed(evidence: Evidence) -> Iterator[str]:
    """204: cancelled, unless its work was done by then. 409: it had ended otherwise."""
    for task in evidence.tasks:
        for call in evidence.calls_for("cancel", task.id):
            if call.outcome == "yes" and task.status not in ("cancelled", "completed"):
                yield f"{task} was cancelled (204), and is {task.status}"
            if call.outcome == "no" and (call.code != 409 or task.status not in ("completed", "failed")):
                yield f"{task} could not be cancelled ({call.code} {call.problem}), and is {task.status}"


def priorities_are_kept(evidence: Evidence) -> Iterator[str]:
    """The last accepted change of a priority counts; those that overlapped it, or whose outcome is unknown, may."""
    for task in evidence.tasks:
        changes = [call for call in evidence.calls_for("change", task.id) if call.outcome != "no"]
        accepted = [call for call in changes if call.outcome == "yes"]

        def is_outdone(call: Call, accepted: list[Call] = accepted) -> bool:
            return any(other.asked > call.answered for other in accepted)

        possible = {call.about["priority"] for call in changes if not is_outdone(call)}
        if not accepted:
            possible.add(evidence.posts[task.number].priority)
        if task.priority not in possible:
            yield f"{task} has priority {task.priority}; its changes allow {sorted(possible)}"
