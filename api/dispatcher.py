"""Row → flow run: sees to it that every task that should have a flow run in Prefect has one.

1. The rows to see to are read in order of urgency, as many as there are free hands.
2. A row is marked as `creating`, with the deployment it is created from, before Prefect is asked: a process that dies
   here is replaced by one that asks again, under the same idempotency key.
3. The flow run is created in the queue of its priority: ready, or held if it waits for others. What was cancelled in
   the meantime is created Cancelled: that is the only answer which makes sure that no live run turns up later.
4. The mirror brings the row in line with the run.
A held run whose dependencies are completed is claimed, so that nobody can start it meanwhile, gets the results that
its parameters refer to (`api.results`), and is made ready.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import DispatchError, UnreachableError
from ai_task_orchestra.settings import Settings
from api import live_store
from api.cancellation import Cancellation
from api.claims import Claim, claim
from api.database import Sessions, raise_if_cancelled
from api.deployments import Deployments
from api.dispatch_store import Candidate, DispatchStore, Order
from api.gateway import PrefectGateway
from api.mirror import Mirror
from api.models import Phase
from api.pools import Pools
from api.prefect_http import PrefectRefusedError, PrefectUnreachableError
from api.prefect_types import CANCELLED, FINAL_STATES, PENDING, SCHEDULED, FlowRun, NewRun
from api.results import Results
from api.transitions import RELEASE, transition_id
from api.wake import Wake

logger = logging.getLogger(__name__)

#: Requests to Prefect at once.
HANDS: Final = 8
#: Without being woken, look this often.
POLL_SECONDS: Final = 1.0
#: After Prefect did not answer, nothing is tried for this long.
PAUSE_SECONDS: Final = 0.5
FIRST_BACKOFF_SECONDS: Final = 0.25
LONGEST_BACKOFF_SECONDS: Final = 30.0
#: The same for what is only not possible yet, such as a template whose deployment is just being made.
LONGEST_WAIT_SECONDS: Final = 2.0
#: More rows than this in backoff: the old ones are forgotten.
MANY: Final = 2000
#: What Prefect has refused this often it will not take any more.
MAX_REFUSALS: Final = 5
#: A held run is scheduled for then: no worker looks so far ahead.
FAR_FUTURE: Final = datetime(2100, 1, 1, tzinfo=UTC)


class Dispatcher:
    """Creates and releases flow runs, the most urgent first, several at once."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        gateway: PrefectGateway,
        mirror: Mirror,
        cancellation: Cancellation,
        results: Results,
        pools: Pools,
        wake: Wake,
    ) -> None:
        self._settings, self._sessions, self._gateway, self._results = settings, sessions, gateway, results
        self._mirror, self._cancellation, self._pools, self._wake = mirror, cancellation, pools, wake
        self._store = DispatchStore(sessions)
        self._deployments = Deployments(gateway)
        self._busy: dict[UUID, asyncio.Task[None]] = {}
        self._backoff: dict[UUID, tuple[float, float]] = {}
        self._refusals: dict[UUID, int] = {}
        self._paused_until = 0.0

    async def run(self) -> None:
        """Dispatch until cancelled."""
        self._pools.add(await self._store.pools())
        try:
            while True:
                try:
                    await self._fill()
                except (SQLAlchemyError, OSError) as exc:
                    raise_if_cancelled()
                    logger.warning("dispatch_postponed", extra={"reason": type(exc).__name__})
                    await asyncio.sleep(PAUSE_SECONDS)
                await self._wake.wait(POLL_SECONDS)
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _fill(self) -> None:
        """Give every free hand a row; `_done` wakes us for the next."""
        free = HANDS - len(self._busy)
        now = time.monotonic()
        if free <= 0 or now < self._paused_until:
            return
        later = {task_id for task_id, (until, _) in self._backoff.items() if until > now}
        candidates = await self._store.next(
            self._pools.names(), window=self._settings.dispatch_window, limit=free, busy=self._busy.keys() | later
        )
        for candidate in candidates:
            task = asyncio.create_task(self._see_to(candidate))
            self._busy[candidate.id] = task
            task.add_done_callback(partial(self._done, candidate.id))

    def _done(self, task_id: UUID, _: asyncio.Task[None]) -> None:
        self._busy.pop(task_id, None)
        self._wake.dispatch()

    async def _see_to(self, candidate: Candidate) -> None:
        """One row, whatever happens."""
        try:
            if candidate.phase == Phase.HELD:
                seen_to = await self._release(candidate)
            else:
                seen_to = await self._create(candidate)
        except PrefectRefusedError as exc:
            await self._refused(candidate, exc)
        except (UnreachableError, DispatchError, SQLAlchemyError, OSError) as exc:
            if isinstance(exc, PrefectUnreachableError) and not exc.sent:
                self._paused_until = time.monotonic() + PAUSE_SECONDS
            self._put_off(candidate)
            reason = str(exc) if isinstance(exc, UnreachableError | DispatchError) else type(exc).__name__
            logger.warning("dispatch_postponed", extra={"task_id": str(candidate.id), "reason": reason})
        except Exception:
            self._put_off(candidate)
            logger.exception("dispatch_failed", extra={"task_id": str(candidate.id)})
        else:
            if seen_to:
                self._backoff.pop(candidate.id, None)
                self._refusals.pop(candidate.id, None)
            else:
                self._put_off(candidate, at_most=LONGEST_WAIT_SECONDS)

    async def _create(self, candidate: Candidate) -> bool:
        """Steps 2 to 4; False: not now."""
        deployment = await self._deployments.find(candidate.template, candidate.deployment_id)
        if deployment is None:
            return False
        order = await self._store.mark(candidate, deployment.id, deployment.flow_id)
        if order is None:
            return True
        try:
            run = await self._gateway.create_run(deployment.id, self._new_run(order))
        except PrefectUnreachableError as exc:
            if not exc.sent and candidate.phase == Phase.WAITING:
                await self._store.unmark(candidate)
            raise
        if run is None:
            self._deployments.forget(candidate.template)
            await self._store.unmark(candidate, deployment_gone=True)
            return False
        logger.info(
            "flow_run_created",
            extra={"task_id": str(order.id), "flow_run_id": str(run.id), "generation": order.generation},
        )
        run = await self._hide(run)
        if run.state.type in FINAL_STATES:
            await self._mirror.reconcile([run.id])
        else:
            await self._mirror.apply(run)
            if order.is_over:
                await self._cancellation.pursue(order.id)
        return True

    def _new_run(self, order: Order) -> NewRun:
        state_type, state_name, message, when = SCHEDULED, protocol.STATE_QUEUED, None, order.due
        if order.is_over:
            state_type, state_name, message, when = CANCELLED, "Cancelled", "Cancelled before it was created.", None
        elif order.unresolved or order.refers:
            # Created Pending, which no worker polls, since the first state decides where the UI sorts a run.
            state_type, state_name, when = PENDING, protocol.STATE_HELD, None
            message = _why_held(order)
        return NewRun(
            name=protocol.run_name(order.template, str(order.id)),
            idempotency_key=protocol.idempotency_key(str(order.id), order.generation),
            parameters=order.parameters,
            work_queue=protocol.queue_name(order.priority),
            tags=protocol.run_tags(str(order.id), order.priority, order.batch_id, *_waits_for_results(order)),
            labels=_labels(order),
            state_type=state_type,
            state_name=state_name,
            state_message=message,
            scheduled_time=when,
        )

    async def _hide(self, run: FlowRun) -> FlowRun:
        """A held run's second step: scheduled for the far future, where it can be cancelled and claimed."""
        if not run.state.is_being_held:
            return run
        answer = await self._gateway.propose(
            run.id,
            SCHEDULED,
            name=protocol.STATE_HELD,
            message=run.state.message,
            scheduled_time=FAR_FUTURE,
            transition_id=transition_id(run.id, "hold"),
        )
        return replace(run, state=answer.state) if answer is not None and answer.state is not None else run

    async def _release(self, candidate: Candidate) -> bool:
        """A held run whose dependencies are all satisfied becomes ready; False: not now."""
        run_id = candidate.flow_run_id
        if run_id is None:
            return False
        taken = await claim(self._gateway, run_id, RELEASE)
        if taken is Claim.BUSY:
            return False
        if taken is Claim.OURS and await self._results.hand_over(candidate, run_id):
            await self._gateway.propose(
                run_id, SCHEDULED, name=protocol.STATE_QUEUED, transition_id=transition_id(run_id, "released")
            )
            logger.info("task_released", extra={"task_id": str(candidate.id), "flow_run_id": str(run_id)})
        await self._mirror.reconcile([run_id])
        return True

    async def _refused(self, candidate: Candidate, error: PrefectRefusedError) -> None:
        """Try a few times: it may be the fault of something that is just being changed."""
        count = self._refusals[candidate.id] = self._refusals.get(candidate.id, 0) + 1
        logger.warning("dispatch_refused", extra={"task_id": str(candidate.id), "reason": str(error), "times": count})
        self._deployments.forget(candidate.template)
        if count < MAX_REFUSALS:
            self._put_off(candidate)
            return
        async with self._sessions.begin() as session:
            task = await live_store.lock(session, candidate.id)
            if task is not None and not task.is_final and task.generation == candidate.generation:
                why = {"type": "dispatch", "message": str(error)}
                await live_store.finish(session, task, "failed", error=why)
                if task.flow_run_id is not None:  # a held one that could not be released
                    await live_store.dispose(session, task.flow_run_id, task.id, live_store.CANCEL)
        self._refusals.pop(candidate.id, None)

    def _put_off(self, candidate: Candidate, at_most: float = LONGEST_BACKOFF_SECONDS) -> None:
        now = time.monotonic()
        if len(self._backoff) > MANY:
            self._backoff = {key: known for key, known in self._backoff.items() if known[0] > now}
        _, delay = self._backoff.get(candidate.id, (0.0, 0.0))
        delay = min(max(2 * delay, FIRST_BACKOFF_SECONDS), at_most)
        self._backoff[candidate.id] = (now + delay, delay)


def _labels(order: Order) -> dict[str, str]:
    labels = {
        protocol.LABEL_TASK: str(order.id),
        protocol.LABEL_TENANT: order.tenant,
        protocol.LABEL_PRIORITY: str(order.priority),
    }
    if order.dependencies:
        labels[protocol.LABEL_DEPENDENCIES] = str(protocol.dependency_nodes(order.dependencies))
    return labels


def _why_held(order: Order) -> str:
    if not order.unresolved:
        return "Its parameters are being completed with results of other tasks."
    return f"Waits for {order.unresolved} other task{'s' if order.unresolved > 1 else ''}."


def _waits_for_results(order: Order) -> tuple[str, ...]:
    return (protocol.TAG_AWAITING_RESULTS,) if order.refers else ()
