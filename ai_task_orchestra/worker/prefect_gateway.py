"""Everything the worker's parent process asks of Prefect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, Failed, Pending, Scheduled

from ai_task_orchestra import protocol
from ai_task_orchestra.server_clock import SLACK, ServerClock
from ai_task_orchestra.worker.patient_client import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, is_unreachable

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

# How long a deployment is believed to be as it was without looking again.
_DEPLOYMENT_SECONDS: Final = 60.0
# The most that Prefect returns at once.
_MOST_CANDIDATES: Final = 200
# Each attempt means that somebody else changed the state between our looking and our setting it.
_SETTLE_ATTEMPTS: Final = 5
_PAGE: Final = 200
_ACTIVE: Final = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
CANCELLED_MESSAGE: Final = "Cancelled; its processes were stopped."


@dataclass(frozen=True)
class Candidate:
    """A run that waits: its flow run as Prefect's API gives it (only ids are looked at here)."""

    id: UUID
    deployment_id: UUID | None
    flow_run: dict[str, Any]

    @classmethod
    def of(cls, flow_run: Mapping[str, Any]) -> Candidate:
        deployment = flow_run.get("deployment_id")
        return cls(UUID(flow_run["id"]), UUID(deployment) if deployment else None, dict(flow_run))


@dataclass(frozen=True)
class Deployment:
    """A deployment's name, and the flow it means."""

    name: str
    entrypoint: str | None


class PrefectGateway:
    """Prefect as the worker sees it. Its client is expected not to wait by itself when Prefect is unreachable."""

    def __init__(self, client: PrefectClient, *, pool: str, queues: Iterable[str], worker: str) -> None:
        """`queues`: names of the only queues to serve; empty for all of the pool."""
        self._client = client
        self._pool = pool
        self._queues = sorted(queues)
        self._worker = worker
        self._deployments: dict[UUID, tuple[float, Deployment]] = {}
        self._away_since: float | None = None
        self._clock = ServerClock()

    async def candidates(self, limit: int) -> list[Candidate]:
        """At most `limit` runs that are due, the most urgent queue first, then the oldest.

        Raises:
            httpx.HTTPError: Prefect is unreachable.
        """
        body: dict[str, Any] = {
            "scheduled_before": (self._clock.now() + SLACK).isoformat(),
            "limit": min(limit, _MOST_CANDIDATES),
        }
        if self._queues:
            body["work_queue_names"] = self._queues
        path: Final = "/work_pools/{name}/get_scheduled_flow_runs"
        try:
            response = await self.ask(
                lambda: self._client.request("POST", path, path_params={"name": self._pool}, json=body)
            )
        except Exception as exc:
            if getattr(getattr(exc, "response", None), "status_code", None) == 404:
                return []  # the pool is made at the next synchronisation
            raise
        self._clock.hear(response.headers.get("date"))
        return [Candidate.of(item["flow_run"]) for item in response.json()]

    async def claim(self, run: Candidate) -> bool:
        """Set the run Pending, the one fence: True when it is ours alone, False when it is somebody else's.

        Raises:
            httpx.HTTPError: no answer came; it may be ours all the same (`claimed_after_all`).
        """
        state: State[Any] = Pending(message=protocol.claim_message(self._worker))
        try:
            result = await self.ask(lambda: self._client.set_flow_run_state(run.id, state))
        except ObjectNotFound:
            return False
        if result.status == SetStateStatus.ACCEPT or (
            # The request was repeated because its first answer got lost: Prefect says that it was made already.
            result.status == SetStateStatus.REJECT and self._is_ours(result.state)
        ):
            if result.state:
                run.flow_run["state"] = result.state.model_dump(mode="json")
            return not await self._was_over(run.id, result.state)
        return False

    async def claimed_after_all(self, run: Candidate) -> bool:
        """Whether a claim that got no answer was taken; waits until Prefect can say."""
        state = await self.insist(lambda: self.state_of(run.id))
        return self._is_ours(state) and not await self._was_over(run.id, state)

    async def _was_over(self, run_id: UUID, claimed: State | None) -> bool:
        """Whether a claim took a run that had ended; its end is then restored.

        Prefect lets an ended run become Pending, and a worker that was held up between looking and claiming would run
        it again. A claim that follows a Scheduled state bears its scheduled time: only without one there is doubt.
        """
        if claimed is None or claimed.state_details.scheduled_time is not None:
            return False
        states = await self.insist(lambda: self._client.read_flow_run_states(run_id))
        ends = sorted((state for state in states if state.is_final()), key=lambda state: state.timestamp)
        if not ends:
            return False
        end: State[Any] = State(type=ends[-1].type, name=ends[-1].name, message=ends[-1].message)
        with contextlib.suppress(ObjectNotFound):
            await self.insist(lambda: self._client.set_flow_run_state(run_id, end, force=True))
        _log.warning("worker.claim_undone", extra={"flow_run_id": str(run_id), "state": end.name})
        return True

    def _is_ours(self, state: State | None) -> bool:
        return state is not None and state.is_pending() and protocol.worker_of_claim(state.message) == self._worker

    async def deployment(self, deployment_id: UUID) -> Deployment:
        """A deployment, remembered for a minute.

        Raises:
            ObjectNotFound: the deployment was deleted.
        """
        known = self._deployments.get(deployment_id)
        if known and time.monotonic() - known[0] < _DEPLOYMENT_SECONDS:
            return known[1]
        found = await self.insist(lambda: self._client.read_deployment(deployment_id))
        deployment = Deployment(found.name, found.entrypoint)
        self._deployments[deployment_id] = (time.monotonic(), deployment)
        return deployment

    async def state_of(self, run_id: UUID) -> State | None:
        """The run's state; None when the run was deleted."""
        try:
            return (await self.ask(lambda: self._client.read_flow_run(run_id))).state
        except ObjectNotFound:
            return None

    async def states_of(self, run_ids: Iterable[UUID]) -> dict[UUID, State | None]:
        """The states of many runs; deleted ones are None."""
        wanted = list(run_ids)
        selection = FlowRunFilter(id=FlowRunFilterId(any_=wanted))
        runs = await self.ask(lambda: self._client.read_flow_runs(flow_run_filter=selection, limit=len(wanted)))
        return dict.fromkeys(wanted) | {run.id: run.state for run in runs}

    async def left_behind(self) -> list[UUID]:
        """The runs that Prefect believes to be with this worker. Asked at its start, they are an earlier worker's."""
        found: list[UUID] = []
        offset = 0
        states = FlowRunFilterState(type=FlowRunFilterStateType(any_=_ACTIVE))
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._pool]))
        while True:
            page = await self.ask(
                lambda offset=offset: self._client.read_flow_runs(  # type: ignore[misc]
                    flow_run_filter=FlowRunFilter(state=states), work_pool_filter=pool, limit=_PAGE, offset=offset
                )
            )
            found += [run.id for run in page if self._is_with_us(run)]
            offset += len(page)
            if len(page) < _PAGE:
                return found

    def _is_with_us(self, run: FlowRun) -> bool:
        claimed_by = protocol.worker_of_claim(run.state.message) if run.state else None
        return self._worker in (protocol.worker_of_run(run.infrastructure_pid), claimed_by)

    async def put_back(self, run_id: UUID) -> None:
        """Give a claim back: the run waits again, for any worker. One that has begun all the same is handed back."""
        state: State[Any] = Scheduled(name=protocol.STATE_QUEUED)
        state.state_details.scheduled_time = None  # now, by Prefect's clock
        await self._settle(run_id, state, if_running=self._handed_back())

    async def hand_back(self, run_id: UUID) -> None:
        """Mark the run as begun and not ended, since this worker stops: nothing is wrong with it."""
        await self._settle(run_id, self._handed_back())

    def _handed_back(self) -> State[Any]:
        message = f"The worker {self._worker} was stopped before the run had ended."
        return Crashed(name=protocol.STATE_HANDED_BACK, message=message)

    async def failed(self, run_id: UUID, message: str) -> None:
        """Mark the run Failed, under the same conditions as `crashed`."""
        await self._settle(run_id, Failed(message=message))

    async def crashed(self, run_id: UUID, message: str) -> None:
        """Mark the run Crashed, unless it is final, waits (again), or is being cancelled: then it becomes Cancelled."""
        await self._settle(run_id, Crashed(message=message))

    async def cancelled(self, run_id: UUID, message: str = CANCELLED_MESSAGE) -> None:
        """Mark the run Cancelled, unless it reached another final state before."""
        await self._settle(run_id, Cancelled(message=message))

    async def _settle(self, run_id: UUID, settled: State, *, if_running: State | None = None) -> None:
        """Read, decide, set; again when the state changed in between, and for as long as Prefect is unreachable."""
        for _ in range(_SETTLE_ATTEMPTS):
            present = await self.insist(lambda: self.state_of(run_id))
            wanted = if_running if if_running and present and present.is_running() else settled
            if present is None or not _may_become(present, wanted):
                return
            state = Cancelled(message=CANCELLED_MESSAGE) if present.is_cancelling() else wanted
            try:
                result = await self.insist(
                    lambda state=state: self._client.set_flow_run_state(  # type: ignore[misc]
                        run_id, state, force=state.type is StateType.CANCELLED
                    )
                )
            except ObjectNotFound:
                return
            _log.info(
                "worker.state_set",
                extra={"flow_run_id": str(run_id), "state": state.name, "answer": result.status.value},
            )
            if result.status == SetStateStatus.ACCEPT:
                return

    async def heartbeat(self, interval_seconds: float) -> None:
        """Say that this worker is alive."""
        await self.ask(
            lambda: self._client.send_worker_heartbeat(self._pool, self._worker, max(1, round(interval_seconds)))
        )

    async def insist(self, question: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until Prefect answers, with pauses of at most five seconds."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self.ask(question)
            except Exception as exc:
                if not is_unreachable(exc):
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def ask(self, question: Callable[[], Awaitable[_T]]) -> _T:
        """Ask once. The beginning and the end of an outage are logged, nothing between."""
        try:
            answer = await question()
        except Exception as exc:
            if is_unreachable(exc) and self._away_since is None:
                self._away_since = time.monotonic()
                _log.warning("worker.prefect_unreachable", extra={"error": f"{type(exc).__name__}: {exc}"})
            raise
        if self._away_since is not None:
            _log.info("worker.prefect_back", extra={"seconds": round(time.monotonic() - self._away_since, 1)})
            self._away_since = None
        return answer


def _may_become(present: State, wanted: State) -> bool:
    if present.is_final():
        return False
    if wanted.is_cancelled() or present.is_cancelling():
        return True
    if wanted.is_scheduled():  # a claim is given back only while it is nothing but a claim
        return present.is_pending()
    return present.is_pending() or present.is_running()
