"""Flow run → row: brings tasks in line with what Prefect says.

Whoever learns of a flow run (an event, a poll, an answer of Prefect to ourselves) hands it to `apply`, in any order
and as often as they like. Old news change nothing, and the first final state wins.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from ai_task_orchestra.protocol import task_of_run
from api import live_store
from api.adoption import Adoption
from api.database import Sessions, is_away
from api.gateway import PAGE, PrefectGateway
from api.live_store import LiveTask, Mirrored
from api.models import Phase
from api.prefect_types import CANCELLED, CANCELLING, CRASHED, FINAL_STATES, RUNNING, SCHEDULED, FlowRun
from api.transitions import (
    Again,
    Decision,
    Ending,
    Finish,
    contradicts,
    decide,
    error_of,
    jittered,
    outcome,
    phase_of,
)
from api.wake import Wake

logger = logging.getLogger(__name__)

Report = Mapping[str, Any]


class Mirror:
    """The only writer of a task's status after it was accepted (besides cancelling what Prefect does not have)."""

    def __init__(
        self,
        sessions: Sessions,
        gateway: PrefectGateway,
        adoption: Adoption,
        wake: Wake,
    ) -> None:
        self._sessions, self._gateway, self._adoption, self._wake = sessions, gateway, adoption, wake

    async def reconcile(self, run_ids: Collection[UUID]) -> dict[UUID, FlowRun]:
        """Read flow runs (any number) and bring their tasks in line; returns those that exist."""
        wanted = list(run_ids)
        found: dict[UUID, FlowRun] = {}
        for start in range(0, len(wanted), PAGE):
            page = wanted[start : start + PAGE]
            runs = await self._gateway.runs(page)
            await self.take_in(runs.values())
            for run_id in page:
                if run_id not in runs:
                    await self.missing(run_id)
            found |= runs
        return found

    async def take_in(self, runs: Iterable[FlowRun]) -> None:
        """Bring tasks in line with runs just read; those that have not changed cost one query together."""
        listed = list(runs)
        known = await self.known([run.id for run in listed])
        news = [await self._as_it_ended(run) for run in listed if _is_news(run, known.get(run.id))]
        reports: dict[UUID, Report] = {run.id: run.report for run in news if run.report is not None}
        ended = [run.id for run in news if run.state.type in FINAL_STATES and run.id not in reports]
        for start in range(0, len(ended), PAGE):
            reports |= await self._gateway.reports(ended[start : start + PAGE])
        for run in news:
            try:
                await self.apply(run, reports.get(run.id))
            except (StatementError, ValueError) as exc:
                if isinstance(exc, OperationalError | InterfaceError) or (isinstance(exc, DBAPIError) and is_away(exc)):
                    raise
                # One run that can't be stored must not keep the others from being mirrored.
                logger.exception("flow_run_not_mirrored", extra={"flow_run_id": str(run.id)})

    async def _as_it_ended(self, run: FlowRun) -> FlowRun:
        """A run that ended by itself just before its worker was declared lost keeps its own end, in Prefect too."""
        if run.state.type != CRASHED:
            return run
        states = await self._gateway.states(run.id)
        ends = list(takewhile(lambda state: state.type in FINAL_STATES, reversed(states)))
        own = ends[-1] if ends else run.state
        if own.type != CRASHED:
            await self._gateway.propose(run.id, own.type, name=own.name, message=own.message, force=True)
        return replace(run, state=own)

    async def known(self, run_ids: Collection[UUID]) -> dict[UUID, Mirrored]:
        """How each of `run_ids` was last mirrored; only runs that are a task's present one."""
        async with self._sessions.single() as session:
            return await live_store.mirrored(session, run_ids)

    async def apply(self, run: FlowRun, report: Report | None = None) -> None:
        """Bring one task in line with its flow run. `report`: what the attempt left, needed for final states."""
        task_id, generation = task_of_run(run.id, run.idempotency_key)
        if not await self._apply(run, UUID(task_id), generation, report) and await self._adoption.adopt(
            run, UUID(task_id), generation
        ):
            await self._apply(run, UUID(task_id), generation, report)
        self._wake.dispatch()

    async def _apply(self, run: FlowRun, task_id: UUID, generation: int, report: Report | None) -> bool:
        """False: there is no such task."""
        async with self._sessions.begin() as session:
            task = await live_store.lock(session, task_id)
            if task is None:
                return False
            if task.generation != generation or task.flow_run_id not in (None, run.id) or task.is_final:
                await self._contradict(session, task, run, generation)
            elif task.state_at is None or task.state_at <= run.state.timestamp:
                await self._bring_in_line(session, task, run, report)
                await self._wake.announce(session)
            return True

    async def missing(self, run_id: UUID) -> None:
        """A flow run could not be read. If it is a task's, and still can't be, it was deleted.

        A row names a run only once that is committed in Prefect, so what the second look says is sure; the first one
        may have been taken too early, because an event was.

        Somebody deleted it by hand: the task is cancelled, since running it again would be the opposite of what they
        wanted. But if its deployment is gone as well (a template was removed and deployed again, or Prefect's
        database was replaced), nobody meant this task, and it gets a new flow run.
        """
        async with self._sessions.single() as session:
            task_id = await live_store.task_of_flow_run(session, run_id)
            task = await live_store.read(session, task_id) if task_id else None
        if task is None or task.is_final or await self._gateway.runs([run_id]):
            return
        meant = task.adopted or task.cancel_requested_at is not None
        if not meant and task.deployment_id is not None:
            meant = await self._gateway.deployment_by_id(task.deployment_id) is not None
        async with self._sessions.begin() as session:
            locked = await live_store.lock(session, task.id)
            if locked is None or locked.flow_run_id != run_id or locked.is_final:
                return
            if meant:
                error = {"type": "deleted_in_prefect", "message": "Its flow run was deleted in Prefect."}
                asked_for = locked.cancel_requested_at is not None
                await live_store.finish(session, locked, "cancelled", error=None if asked_for else error)
            else:
                await live_store.begin_again(session, locked, deployment_id=None, flow_id=None)
            await self._wake.announce(session)
        logger.warning(
            "flow_run_missing", extra={"task_id": str(task.id), "flow_run_id": str(run_id), "deleted": meant}
        )
        self._wake.dispatch()

    async def _bring_in_line(self, session: AsyncSession, task: LiveTask, run: FlowRun, report: Report | None) -> None:
        ending = Ending.of(run.state, report)
        decision = decide(task.standing, run.state.type, ending)
        worker = (report or {}).get("worker") or run.worker or task.worker
        if run.state.type == SCHEDULED:
            worker = None  # nobody's (any more): a worker that stops gives its claims back
        how = outcome(run.state.type, ending)
        if run.began is not None or run.state.type in (RUNNING, CRASHED):
            ended = run.state.timestamp if how else None
            await live_store.record_attempt(session, task, run, worker=worker, ended=ended, how=how)
        columns: dict[str, Any] = {
            "flow_run_id": run.id,
            "deployment_id": run.deployment_id,
            "flow_id": run.flow_id,
            "state_id": run.state.id,
            "state_at": run.state.timestamp,
            "worker": worker,
            "started_at": task.started_at or run.began,
        }
        await self._write(session, task, run, decision, columns, report)
        if task.status != getattr(decision, "status", "queued"):
            logger.info(
                "task_status",
                extra={
                    "task_id": str(task.id),
                    "flow_run_id": str(run.id),
                    "status": getattr(decision, "status", "queued"),
                    "state": run.state.name,
                },
            )

    async def _write(
        self,
        session: AsyncSession,
        task: LiveTask,
        run: FlowRun,
        decision: Decision,
        columns: dict[str, Any],
        report: Report | None,
    ) -> None:
        if isinstance(decision, Finish):
            columns |= _left_behind(run, decision, report)
            await live_store.finish(session, task, decision.status, at=run.state.timestamp, **columns)
            if decision.status == "cancelled" and run.state.type != CANCELLED:
                await live_store.dispose(session, run.id, task.id, live_store.OVERRULE)
        elif isinstance(decision, Again):
            again = decision.counted(task.standing) | {"started_at": columns["started_at"]}
            await live_store.begin_again(session, task, delay=jittered(decision.delay), **again)
        else:
            columns |= {"status": decision.status, "phase": phase_of(run.id, run.state, task.phase)}
            if run.state.type == CANCELLING and run.state.id != task.state_id:
                columns["cancelling_since"] = func.now()
            await live_store.write(session, task, **columns)

    async def _contradict(self, session: AsyncSession, task: LiveTask, run: FlowRun, generation: int) -> None:
        """A run that does not count (any more): what is live of it must go, what ended differently is written down."""
        state = run.state
        if task.is_final and task.phase == Phase.CREATING and not state.is_being_held:
            await live_store.end_phase(session, task.id)
        if task.flow_run_id == run.id and task.state_at is not None and state.timestamp <= task.state_at:
            return  # old news
        if state.type not in FINAL_STATES:
            if not task.adopted:  # a run that somebody made in Prefect is theirs to run again
                await live_store.dispose(session, run.id, task.id, live_store.CANCEL)
            if task.is_final and task.flow_run_id == run.id:
                detail: dict[str, Any] = {"state": state.name, "status": task.status}
                await live_store.audit(session, "live_after_end", task.id, run, detail)
            return
        decided = task.status if task.flow_run_id == run.id else await live_store.recorded_outcome(session, run.id)
        if decided is not None and contradicts(decided, state.type):
            detail = {"state": state.name, "generation": generation, "decided": decided}
            await live_store.audit(session, "late_state", task.id, run, detail)
            logger.warning(
                "late_state", extra={"task_id": str(task.id), "flow_run_id": str(run.id), "state": state.name}
            )


def _is_news(run: FlowRun, known: Mirrored | None) -> bool:
    return known is None or known.state_id != run.state.id


def _left_behind(run: FlowRun, decision: Finish, report: Report | None) -> dict[str, Any]:
    """The columns that the attempt's report fills."""
    left: dict[str, Any] = {"resource_usage": (report or {}).get("resource_usage")}
    if decision.status == "completed":
        left["result"] = (report or {}).get("result")
    elif decision.error_type is not None:
        left["error"] = error_of(run.state, decision.error_type, report)
    return left
