"""What must become of tasks, in plain Python: a model that knows what was asked and done, and nothing of how.

Deeds are told to the model in the order in which they happened. From them follows what a task may end as: `finals`,
empty while nothing has decided it. Where somebody meddled before the core could see what went before, the task is
`unsure`: it may end in any way, but once, and only until everything has come to rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FINAL = ("completed", "failed", "cancelled")


@dataclass(eq=False)
class ModelTask:
    """One accepted task, and what is certain about it."""

    id: str
    priorities: set[int]
    depends_on: list[ModelTask] = field(default_factory=list)
    runs_anyway: bool = False
    retries: int = 0
    max_losses: int = 3
    adopted: bool = False
    #: The API knows it: at once, unless it is adopted.
    is_seen: bool = False
    finals: set[str] = field(default_factory=set)
    unsure: bool = False
    shown: str = "queued"
    failures: int = 0
    losses: int = 0
    #: Somebody has started its finished run again by hand, and the core has not yet answered that.
    restarted: bool = False
    dependents: list[ModelTask] = field(default_factory=list)

    @property
    def is_decided(self) -> bool:
        return bool(self.finals) or self.shown in FINAL

    @property
    def may_start(self) -> bool:
        """Whether every dependency allows a step to begin; those that are unsure might."""
        return all(
            up.unsure or "completed" in up.finals or up.shown == "completed" or (self.runs_anyway and up.is_decided)
            for up in self.depends_on
        )

    @property
    def waits(self) -> bool:
        """Whether it is certain that it still waits for others."""
        return any(not up.is_decided for up in self.depends_on)


class TaskModel:
    """All tasks of a history."""

    def __init__(self) -> None:
        self.tasks: dict[str, ModelTask] = {}
        #: Nothing was done since the core has come to rest.
        self.at_rest = False

    def accept(self, task: ModelTask) -> ModelTask:
        """A task that the API has answered with 201, or a flow run born in Prefect."""
        assert task.id not in self.tasks, f"task {task.id} was accepted twice"
        self.tasks[task.id] = task
        for upstream in task.depends_on:
            upstream.dependents.append(task)
            if upstream.unsure:
                task.unsure = True
            elif upstream.is_decided and "completed" not in (upstream.finals or {upstream.shown}):
                self._doom(task)
        return task

    def may_refuse(self, depends_on: Iterable[ModelTask]) -> bool:
        """Whether a task that depends on these, and does not run anyway, may be answered with 409."""
        return any(up.unsure or ({"failed", "cancelled"} & (up.finals | {up.shown})) for up in depends_on)

    def must_refuse(self, depends_on: Iterable[ModelTask]) -> bool:
        return any(up.shown in ("failed", "cancelled") for up in depends_on)

    # What happens to the present attempt of a task.

    def ended(self, task: ModelTask, how: str) -> None:
        """Prefect has accepted an end of its present attempt: a worker's, or somebody's by hand."""
        if task.is_decided or task.unsure:
            return
        if how == "failed" and task.failures < task.retries:
            task.failures += 1
        elif how == "crashed" and task.losses + 1 < task.max_losses:
            task.losses += 1
        else:
            self._decide(task, "failed" if how == "crashed" else how)

    def cancel_accepted(self, task: ModelTask, *, prefect_answers: bool) -> None:
        """The API has answered 204."""
        assert task.shown in ("queued", "running", "cancelled"), f"204 for a task shown as {task.shown}"
        if not task.unsure and prefect_answers:
            assert task.finals != {"completed"}, "204 for a task whose work is done"
        task.finals = set()
        self._decide(task, "cancelled")

    def cancel_refused(self, task: ModelTask) -> None:
        """The API has answered 409."""
        if not task.unsure:
            assert task.finals & {"completed", "failed"}, f"409 for a task that may end as {task.finals}"

    def meddled(self, task: ModelTask) -> None:
        """Somebody changed its flow run while it was not certain what the core had seen of it."""
        if task.shown in FINAL or task.unsure:
            return
        task.unsure = True
        task.finals = set()
        for dependent in task.dependents:
            self.meddled(dependent)

    def started(self, task: ModelTask) -> None:
        """A step body begins to run."""
        assert task.may_start, f"{task.id} runs before its dependencies are completed"
        if not task.unsure and not task.restarted:
            assert not task.finals & {"completed", "failed"}, f"{task.id} runs again after it {task.finals}"

    # What the API shows.

    def show(self, task: ModelTask, status: str) -> None:
        """The status that can be read now."""
        if task.shown in FINAL:
            assert status == task.shown, f"{task.id} was {task.shown} and is now {status}"
            return
        if status in FINAL:
            assert task.unsure or status in task.finals, f"{task.id} is {status}, expected {task.finals or 'no end'}"
            task.unsure, task.finals, task.shown = False, {status}, status
            if status != "completed":
                for dependent in task.dependents:
                    self._doom(dependent)
        else:
            task.shown = status

    def rest(self, task: ModelTask, failures: int, losses: int) -> None:
        """Everything has come to rest, and `show` has been told what there is."""
        if task.shown not in FINAL:
            assert task.unsure or not task.finals, f"{task.id} should be {task.finals} and is {task.shown}"
            if task.unsure:
                task.failures, task.losses = failures, losses
            assert (task.failures, task.losses) == (failures, losses), f"attempts of {task.id} were counted otherwise"
        task.unsure, task.restarted = False, task.restarted and task.adopted

    def check_relations(self) -> None:
        """Once every task is final: what needs its dependencies was cancelled if one of them did not complete."""
        for task in self.tasks.values():
            assert task.shown in FINAL, f"{task.id} is still {task.shown}"
            broken = [up.id for up in task.depends_on if up.shown != "completed"]
            if broken and not task.runs_anyway:
                assert task.shown == "cancelled", f"{task.id} is {task.shown} although {broken} did not complete"

    def _decide(self, task: ModelTask, status: str) -> None:
        task.finals, task.unsure = {status}, False
        if status != "completed":
            for dependent in task.dependents:
                self._doom(dependent)

    def _doom(self, task: ModelTask) -> None:
        """A dependency will not complete."""
        if not task.runs_anyway and not task.is_decided:
            self._decide(task, "cancelled")
