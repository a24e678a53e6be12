"""Histories written by hand, for the tests of the rules: a story is told event by event, and becomes evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ai_task_orchestra.protocol import claim_message, queue_name
from tests.histories.evidence import Attempt, Call, Evidence, FaultEvent, Line, Run, Scan, State, Task
from tests.histories.plan import Post

_PREFECT = {"completed": "COMPLETED", "failed": "FAILED", "cancelled": "CANCELLED", "crashed": "CRASHED"}


class Story:
    """Tells a history. Every event is one second and one place later than the one before."""

    def __init__(self) -> None:
        self.now = 0
        self.posts: dict[int, Post] = {}
        self.lines: list[Line] = []
        self.calls: list[Call] = []
        self.scans: list[Scan] = []
        self.faults: list[FaultEvent] = []
        self.tasks: dict[str, Task] = {}
        self.runs: dict[tuple[str, int], Run] = {}
        self.living: dict[str, list[int]] = {}
        self.outputs: dict[int, str] = {}

    def evidence(self) -> Evidence:
        """What the checker gets."""
        return Evidence(
            posts=self.posts,
            lines=tuple(self.lines),
            calls=tuple(self.calls),
            scans=tuple(self.scans),
            faults=tuple(self.faults),
            tasks=tuple(self.tasks.values()),
            runs=tuple(self.runs.values()),
            living=self.living,
            outputs=self.outputs,
        )

    def post(self, number: int = 0, template: str = "quick", **more: Any) -> str:
        """A post that is accepted; the task's id. `depends_on` are ids."""
        depends_on = more.pop("depends_on", ())
        post = Post(0.0, number, template, 0.0, more.pop("priority", 5), **more)
        self.posts[number] = replace(post, depends_on=tuple(self.tasks[one].number for one in depends_on))
        task = Task(
            f"id-{number}",
            number,
            template,
            "queued",
            post.priority,
            generation=1,
            depends_on=tuple(depends_on),
            runs_anyway=post.runs_anyway,
        )
        self.tasks[task.id] = task
        self.call("post", code=201, seen={task.id: {"status": "queued"}}, accepted={number: task.id})
        return task.id

    def call(
        self,
        what: str,
        *,
        outcome: str = "yes",
        code: int = 200,
        seen: dict[str, Any] | None = None,
        accepted: dict[int, str] | None = None,
        **about: Any,
    ) -> None:
        """One request and its answer."""
        asked, answered = self._next(), self._next()
        about |= {"numbers": list(accepted)} if accepted else {}
        self.calls.append(Call(what, asked, answered, outcome, code, about, seen or {}, accepted=accepted or {}))

    def shown(self, task: str, status: str, **fields: Any) -> None:
        """A client reads the task."""
        self.call("get", task=task, seen={task: {"status": status, **fields}})

    def scan(self, task: str, *pids: int) -> None:
        """A look at the processes of a task that was just shown as cancelled."""
        place = self._next()
        self.scans.append(Scan(place, float(place), {task: pids}))

    def line(self, task: str, kind: str, *, step: str = "work", attempt: int = 1, later: int = 0) -> None:
        """A step writes. `later`: so many seconds after the event before."""
        self.now += later
        place = self._next()
        self.lines.append(Line(place, float(place), kind, task, attempt, step, 100 + place))

    def work(self, task: str, *, attempt: int = 1, kind: str = "end", step: str = "work") -> None:
        """A step begins and ends."""
        self.line(task, "start", step=step, attempt=attempt)
        self.line(task, kind, step=step, attempt=attempt)

    def ends(self, task: str, outcome: str, *, attempt: int = 1, message: str | None = None, worker: str = "w") -> None:
        """An attempt ends; its flow run and the row's attempts say so, and the row's status if it is a task's."""
        place, row = self._next(), self.tasks[task]
        states = (
            State("SCHEDULED", "Queued", None, 0.0),
            State("PENDING", "Pending", claim_message(worker), place - 0.5),
            State(_PREFECT[outcome], outcome.title(), message, float(place)),
        )
        queue = queue_name(row.priority)
        self.runs[task, attempt] = Run(task, attempt, _PREFECT[outcome], queue, states)
        attempts = (*row.attempts, Attempt(attempt, worker, float(place), outcome))
        self.row(task, attempts=attempts, generation=attempt)
        if outcome != "crashed":
            self.row(task, status=outcome)
        if outcome == "completed":
            self.row(task, result={"output": f"{task}:{attempt}\n"})
            self.outputs[row.number] = f"{task}:{attempt}\n"

    def lost(self, task: str, *, attempt: int = 1, worker: str = "w") -> None:
        """The API takes an attempt from a worker that does not beat any more."""
        self.ends(
            task, "crashed", attempt=attempt, message=f"The worker {worker} was lost: no heartbeat.", worker=worker
        )

    def row(self, task: str, **columns: Any) -> None:
        """The row as it is in the end."""
        self.tasks[task] = replace(self.tasks[task], **columns)

    def fault(self, name: str, *, worker: str | None = None, moment: str | None = None) -> None:
        """Something happens to the product."""
        self.faults.append(FaultEvent(float(self._next()), name, worker, moment))

    def done(self, number: int = 0, template: str = "quick", **more: Any) -> str:
        """A task that is accepted, works and completes, seen by a client; its id."""
        task = self.post(number, template, **more)
        for step in self.tasks[task].shape.steps:
            self.work(task, step=step)
        self.ends(task, "completed")
        self.shown(task, "completed", result=self.tasks[task].result)
        return task

    def cancelled(self, number: int = 0, **more: Any) -> str:
        """A task that is cancelled before it begins; its id."""
        task = self.post(number, **more)
        self.call("cancel", code=204, task=task)
        self.row(task, status="cancelled")
        self.shown(task, "cancelled")
        self.scan(task)
        return task

    def _next(self) -> int:
        self.now += 1
        return self.now
