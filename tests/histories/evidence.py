"""What a history is judged by. Plain data: rules need no server, and can be tested with histories written by hand.

Times are Unix seconds; `place` is an event's position in the history, which is the order in which things happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from tests.histories.journal import Event
from tests.histories.plan import Post
from tests.histories.templates import SHAPES, Shape

FINAL: Final = ("completed", "failed", "cancelled")
STEP_KINDS: Final = ("start", "end", "fail", "below")
#: What a flow run's state says when the API ended an attempt in its worker's place.
_TAKEN_AWAY: Final = ("was lost", "did not confirm")


@dataclass(frozen=True)
class Line:
    """What a step wrote: it began (`start`), ended (`end`, `fail`), or has another process (`below`)."""

    place: int
    at: float
    kind: str
    task: str
    attempt: int
    step: str
    pid: int


@dataclass(frozen=True)
class Call:
    """One request of a client.

    `about` names its task, or the numbers of its posts; `seen` is what it told of tasks; `accepted` are ids by the
    numbers of their posts.
    """

    what: str
    asked: int
    answered: int
    outcome: str
    code: int
    about: Mapping[str, Any] = field(default_factory=dict)
    seen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problem: Any = None
    accepted: Mapping[int, str] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """Which posts it sent."""
        return list(self.about.get("numbers", ()))


@dataclass(frozen=True)
class Scan:
    """The living processes of tasks, right after they were told to be cancelled."""

    place: int
    at: float
    alive: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class FaultEvent:
    """A fault that happened. `moment` is begin or end for one that lasts."""

    at: float
    name: str
    worker: str | None = None
    moment: str | None = None


@dataclass(frozen=True)
class Attempt:
    """An attempt as our row has it."""

    generation: int
    worker: str | None
    ended: float | None
    outcome: str | None


@dataclass(frozen=True)
class Task:
    """A task as our row has it. `unfinished`: what is still to be done for it, in words."""

    id: str
    number: int
    template: str
    status: str
    priority: int
    generation: int
    depends_on: tuple[str, ...] = ()
    runs_anyway: bool = False
    attempts: tuple[Attempt, ...] = ()
    result: Any = None
    error: Any = None
    unfinished: tuple[str, ...] = ()
    audited: bool = False

    @property
    def shape(self) -> Shape:
        return SHAPES[self.template]

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def __str__(self) -> str:
        return f"task {self.number} ({self.template}, {self.id})"


@dataclass(frozen=True)
class State:
    """A state that a flow run was in."""

    type: str
    name: str
    message: str | None
    at: float
    scheduled_at: float | None = None


@dataclass(frozen=True)
class Run:
    """A flow run in Prefect, with its states in the order of time."""

    task: str
    generation: int
    type: str
    queue: str | None
    states: tuple[State, ...] = ()

    @property
    def was_lost(self) -> bool:
        """Whether its worker, or the process that executed it, was lost at any time."""
        return any(state.type == "CRASHED" for state in self.states)

    @property
    def taken_away_at(self) -> float | None:
        """When the API ended it in its worker's place; None if it never did."""
        for state in self.states:
            if state.message and any(words in state.message for words in _TAKEN_AWAY):
                return state.at
        return None


@dataclass(frozen=True)
class Evidence:
    """A whole history.

    `living`: processes of its tasks at the very end; `outputs`: files that tasks have stored, by number; `earlier`:
    tasks of the history before that may still be worked for by a worker that was cut off.
    """

    posts: Mapping[int, Post] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    calls: tuple[Call, ...] = ()
    scans: tuple[Scan, ...] = ()
    faults: tuple[FaultEvent, ...] = ()
    tasks: tuple[Task, ...] = ()
    runs: tuple[Run, ...] = ()
    living: Mapping[str, Sequence[int]] = field(default_factory=dict)
    outputs: Mapping[int, str] = field(default_factory=dict)
    earlier: frozenset[str] = frozenset()

    @cached_property
    def by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self.tasks}

    @cached_property
    def run_of(self) -> dict[tuple[str, int], Run]:
        """Flow runs by task and generation."""
        return {(run.task, run.generation): run for run in self.runs}

    @cached_property
    def lines_of(self) -> dict[str, list[Line]]:
        """Lines by task, in their order; of every task that has a row."""
        found: dict[str, list[Line]] = {task.id: [] for task in self.tasks}
        for line in self.lines:
            found.setdefault(line.task, []).append(line)
        return found

    def calls_for(self, what: str, task_id: str) -> list[Call]:
        """The calls of a kind for one task."""
        return [call for call in self.calls if call.what == what and call.about.get("task") == task_id]

    def taken_away_at(self, task_id: str, generation: int) -> float | None:
        """When this attempt was taken from its worker; None if it was not."""
        run = self.run_of.get((task_id, generation))
        return run.taken_away_at if run else None

    def own_lines(self, task_id: str) -> list[Line]:
        """A task's lines without those of attempts that were taken away: a worker that is cut off can't be hindered."""
        return [line for line in self.lines_of[task_id] if self.taken_away_at(task_id, line.attempt) is None]

    def thawed_at(self, worker: str | None, moment: float) -> float:
        """When the worker could go on that was frozen at `moment`; the moment itself if it was not."""
        begun: float | None = None
        for fault in self.faults:
            if fault.name == "freeze_worker" and fault.worker == worker:
                if fault.moment == "begin":
                    begun = fault.at
                elif begun is not None and begun <= moment <= fault.at:
                    return fault.at
        return moment


def read_history(events: Iterable[Event]) -> dict[str, Any]:
    """The parts of an `Evidence` that stand in the history."""
    lines, scans, faults, calls = [], [], [], []
    asked: dict[int, Event] = {}
    for event in events:
        match event["kind"]:
            case "ask":
                asked[event["ask"]] = event
            case "answer":
                calls.append(_call(asked[event["ask"]], event))
            case "scan":
                scans.append(Scan(event["place"], event["at"], event["alive"]))
            case "fault":
                if event["pid"] is not None:
                    faults.append(FaultEvent(event["at"], event["name"], event["worker"], event["moment"]))
            case kind if kind in STEP_KINDS:
                lines.append(Line(**{name: event[name] for name in Line.__dataclass_fields__}))
    return {"lines": tuple(lines), "calls": tuple(calls), "scans": tuple(scans), "faults": tuple(faults)}


def _call(ask: Event, answer: Event) -> Call:
    about = {name: value for name, value in ask.items() if name not in ("kind", "at", "place", "ask", "what")}
    return Call(
        what=ask["what"],
        asked=ask["place"],
        answered=answer["place"],
        outcome=answer["outcome"],
        code=answer["code"],
        about=about,
        seen=answer["seen"],
        problem=answer["problem"],
        accepted={int(number): task_id for number, task_id in answer["accepted"].items()},
    )
