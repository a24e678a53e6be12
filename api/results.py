"""Results on their way into the parameters of the tasks that refer to them.

A task with references is always created held, with its parameters as given and a tag that says so: `flows.attempt`
refuses to run them. When it is released, and its run is claimed so that nobody can start it,

1. the results it refers to are read, one at a time: they may be large;
2. what replaces the references is checked as the request's own values were;
3. the flow run gets the parameters, and loses the tag.
A process that dies anywhere here is replaced by one that does the same again: results of ended tasks do not change.
If a result can't be used, the run fails, with a report of the kind that attempts write; the mirror does the rest.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ai_task_orchestra.errors import ResultReferenceError
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.protocol import run_tags
from ai_task_orchestra.settings import Settings
from api import plain_data
from api.dispatch_store import Candidate
from api.gateway import PrefectGateway
from api.models import TaskRecord
from api.prefect_types import FAILED
from api.references import Budget, Reference, json_size, pick, references, substitute

logger = logging.getLogger(__name__)

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]

#: Messages name at most this many references.
NAMED: Final = 3
_ENDS: Final = {"failed": "failed", "cancelled": "was cancelled"}


class Results:
    """Puts results into parameters."""

    def __init__(
        self,
        settings: Settings,
        sessions: async_sessionmaker[AsyncSession],
        library: TemplateLibrary,
        gateway: PrefectGateway,
    ) -> None:
        self._settings, self._sessions, self._library, self._gateway = settings, sessions, library, gateway

    async def hand_over(self, candidate: Candidate, run_id: UUID) -> bool:
        """Complete the parameters of a claimed run that is to be released; False: it has failed instead.

        Raises:
            UnreachableError, DispatchError: Prefect did not take it; to be repeated.
        """
        if not candidate.refers:
            return True
        try:
            parameters = await self.parameters(candidate.id)
        except ResultReferenceError as exc:
            await self._fail(candidate, run_id, exc)
            return False
        tags = run_tags(str(candidate.id), candidate.priority, candidate.batch_id)
        await self._gateway.set_parameters(run_id, parameters, tags=tags)
        return True

    async def parameters(self, task_id: UUID) -> dict[str, Any]:
        """The parameters of a task whose dependencies have ended.

        Raises:
            ResultReferenceError: with the parameter, the task and the path that are to blame.
        """
        columns = (TASK.c.template, TASK.c.parameters, TASK.c.refers_to)
        async with self._sessions() as session:
            row = (await session.execute(select(*columns).where(TASK.c.id == task_id))).one()
        filling = Filling(row.parameters, row.refers_to or {})
        budget = Budget(self._settings.max_parameters_bytes)
        for task in filling.tasks:
            status, result = await self._result(filling.ids[task])
            filling.take(task, status, result, budget)
        return self._checked(row.template, filling)

    async def _result(self, task_id: str) -> tuple[str, Any]:
        async with self._sessions() as session:
            statement = select(TASK.c.status, TASK.c.result).where(TASK.c.id == UUID(task_id))
            row = (await session.execute(statement)).one_or_none()
        return ("unknown", None) if row is None else (row.status, row.result)

    def _checked(self, template: str, filling: Filling) -> dict[str, Any]:
        """As a request's values are checked. A template that is gone is left to the flow, which checks again."""
        completed = filling.completed()
        spec = self._library.templates.get(template)
        misfits = spec.check(completed).errors if spec is not None else {}
        for name in filling.used:
            unfit = plain_data.problem(completed[name], max_nesting=self._settings.max_nesting) or misfits.get(name)
            if unfit:
                raise filling.error(name, unfit)
        try:
            Budget(self._settings.max_parameters_bytes).spend(json_size(completed))
        except ResultReferenceError as exc:
            largest = max(filling.used, key=lambda name: json_size(completed[name]))
            raise filling.error(largest, exc.message) from exc
        return completed

    async def _fail(self, candidate: Candidate, run_id: UUID, error: ResultReferenceError) -> None:
        report = {
            "version": 1,
            "task_id": str(candidate.id),
            "generation": candidate.generation,
            "error": {"type": error.code, "message": error.message},
            "retryable": False,
        }
        await self._gateway.write_report(run_id, report)
        await self._gateway.propose(run_id, FAILED, message=error.message, force=True)
        logger.info("reference_unusable", extra={"task_id": str(candidate.id), "flow_run_id": str(run_id)})


class Filling:
    """The parameters of one task while their references are being replaced.

    `used` has the references of each parameter that holds some, `ids` the tasks that they mean.
    """

    def __init__(self, given: Mapping[str, Any], ids: Mapping[str, str]) -> None:
        self._given, self.ids = given, ids
        found = {name: list(references(value)) for name, value in given.items()}
        self.used = {name: listed for name, listed in found.items() if listed}
        self._uses = Counter(reference for listed in self.used.values() for reference in listed)
        self._values: dict[Reference, Any] = {}

    @property
    def tasks(self) -> list[str]:
        """The tasks referred to, as written."""
        return list(dict.fromkeys(reference.task for reference in self._uses))

    def take(self, task: str, status: str, result: Any, budget: Budget) -> None:
        """Keep of a task's result what is referred to.

        Raises:
            ResultReferenceError: it is not there, or too large.
        """
        for reference in [each for each in self._uses if each.task == task]:
            try:
                self._values[reference] = _part(reference, status, result)
                budget.spend(json_size(self._values[reference]) * self._uses[reference])
            except ResultReferenceError as exc:
                name = next(name for name, listed in self.used.items() if reference in listed)
                raise self.error(name, exc.message, reference) from exc

    def completed(self) -> dict[str, Any]:
        """The parameters with all that was taken."""
        return {name: substitute(value, self._values) for name, value in self._given.items()}

    def error(self, name: str, reason: str, *blamed: Reference) -> ResultReferenceError:
        """`reason` with the parameter and its references, or only those that are to blame."""
        listed = list(dict.fromkeys(blamed or self.used[name]))
        shown = "; ".join(self._shown(reference) for reference in listed[:NAMED])
        more = f"; and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
        return ResultReferenceError(f"parameter {name!r}: {reason} ({shown}{more})")

    def _shown(self, reference: Reference) -> str:
        task_id = self.ids.get(reference.task, "?")
        task = task_id if task_id == reference.task else f"{reference.task!r}, {task_id}"
        return f"task {task}, path {reference.path!r}"


def _part(reference: Reference, status: str, result: Any) -> Any:
    if status != "completed":
        raise ResultReferenceError(f"the task that it refers to {_ENDS.get(status, 'is not there')} and has no result")
    try:
        return pick(result, reference.path)
    except LookupError:
        raise ResultReferenceError("the result that it refers to has nothing there") from None
