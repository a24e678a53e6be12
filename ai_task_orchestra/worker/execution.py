"""One claimed run: from the hand-over to a child until its state is settled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar
from uuid import UUID

from prefect.exceptions import ObjectNotFound

from ai_task_orchestra import workspaces
from ai_task_orchestra.lease import Lease
from ai_task_orchestra.protocol import task_of_run
from ai_task_orchestra.worker.child_link import LinkBrokenError, Message
from ai_task_orchestra.worker.child_pool import ChildPool
from ai_task_orchestra.worker.prefect_gateway import Candidate, PrefectGateway
from ai_task_orchestra.worker.template_client import Child

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_HAND_OVER_ATTEMPTS: Final = 3
# How long a claimed run waits for a child before it is given back to other workers.
_HAND_OVER_SECONDS: Final = 60.0
# A parked child accepts within a millisecond; one that does not is killed, and another one gets the run.
_ACCEPT_SECONDS: Final = 10.0
# A child that has finished ends by itself once its log lines are sent; the bounds there are shorter than this.
_LINGER_SECONDS: Final = 180.0
_FINAL: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})

# Why we end a run ourselves: cancelled by somebody; the worker stops; the run is none of ours any more; nobody has
# heard of us for so long that it may soon be none of ours.
Reason = Literal["cancelled", "worker stopped", "abandoned", "lease lost"]
_LEASE_LOST: Final = "The worker {} had no contact with Prefect for so long that it stopped this run."


class _UnusableRunError(Exception):
    """The run can't be executed by this worker; the message says why."""


@dataclass(frozen=True)
class Surroundings:
    """What all executions of a worker share."""

    gateway: PrefectGateway
    pool: ChildPool
    catalog: str
    scratch: Path
    workspaces: Path
    lease: Lease
    worker: str


class Execution:
    """Executes one claimed run.

    1. Find out which flow it is.
    2. Hand it to a parked child. A child that dies before it accepts has done nothing: another one gets the run.
    3. Wait until the child says that the run has finished. The slot is free from then on.
    4. Wait until the child and everything below it has ended.
    5. Settle the run's state, if the child could not.
    """

    def __init__(self, run: Candidate, around: Surroundings) -> None:
        self.run = run
        self.finished = False
        self._around = around
        self._child: Child | None = None
        self._reason: Reason | None = None
        self._ending: asyncio.Task[object] | None = None
        self._asked_to_end = asyncio.Event()
        self._begun = False
        self._telling: asyncio.Task[None] | None = None

    @property
    def id(self) -> UUID:
        return self.run.id

    def end(self, reason: Reason) -> None:
        """Stop the run with all its processes. The first reason stays; once finished, it is too late."""
        if self.finished or self._reason:
            return
        self._reason = reason
        self._asked_to_end.set()
        _log.info("worker.run_ending", extra={"flow_run_id": str(self.id), "reason": reason})
        if self._child:
            self._ending = asyncio.create_task(self._child.kill())

    def end_unless_begun(self) -> None:
        """The worker stops: what no child has accepted yet is left to other workers."""
        if not self._begun:
            self.end("worker stopped")

    def tell_lease(self, renewed: float) -> None:
        """Tell the child that the worker's lease was renewed; one that does not listen is not waited for."""
        if self._begun and self._child and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(_tell(self._child, {"op": "lease", "renewed": renewed}))

    async def execute(self, release: Callable[[], None]) -> None:
        """Do all of it. `release` is called when the slot is free, at the latest at the end."""
        try:
            try:
                end = await self._with_child(release)
            except _UnusableRunError as exc:
                end = {"unusable": str(exc)}
            except ObjectNotFound:
                end = {"cancelled": "Cancelled: the deployment no longer exists."}
            finally:
                release()
            await self._settle(end)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("worker.run_not_settled", extra={"flow_run_id": str(self.id)})

    async def _with_child(self, release: Callable[[], None]) -> Message | None:
        """Steps 1 to 4. What is known of the end: the child's report, or how its process ended; None: not begun."""
        order = await self._unless_ended(self._order())
        for _ in range(_HAND_OVER_ATTEMPTS if order else 0):
            child = self._child = await self._unless_ended(self._around.pool.take()) if self._may_begin() else None
            if child is None:
                return None
            try:
                if self._may_begin() and await self._accepted(child, order or {}):
                    return await self._outcome(child, release)
            finally:
                await child.kill()  # nothing to do if it has ended, which is the rule
                if self._telling:
                    self._telling.cancel()
                await asyncio.to_thread(self._clean_up)
        if order and not self._reason:  # given back it would only do the same to other children
            return {"error": f"{_HAND_OVER_ATTEMPTS} processes ended before one could accept this run"}
        return None

    def _may_begin(self) -> bool:
        """Whether the run is still ours: a worker that was frozen since it claimed it may find that it is not."""
        if not self._around.lease.held:
            self.end("lease lost")
        return self._reason is None

    async def _order(self) -> Message:
        """What the child is told: the run, and which flow of the catalog it is."""
        if self.run.deployment_id is None:
            raise _UnusableRunError("this worker runs deployments only, and the run belongs to none")
        deployment = await self._around.gateway.deployment(self.run.deployment_id)
        order: Message = {"op": "run", "flow_run": self.run.flow_run}
        name = catalog_flow(deployment.entrypoint or "", self._around.catalog)
        if name is None:
            return order | {"scratch": str(self._scratch)}
        if not await self._around.pool.has_flow(name):
            raise _UnusableRunError(
                f"the deployment's flow {deployment.entrypoint} does not exist on this worker: no such template"
            )
        return order | {"flow": name, "names": {"deployment": deployment.name}}

    async def _unless_ended(self, work: Coroutine[None, None, _T]) -> _T | None:
        """The result of `work`; None when it took too long or the run is to end first."""
        working = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self._asked_to_end.wait())
        try:
            await asyncio.wait({working, asked}, timeout=_HAND_OVER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            asked.cancel()
            working.cancel()

    async def _accepted(self, child: Child, order: Message) -> bool:
        lease = self._around.lease
        try:
            await child.send(order | {"lease": {"seconds": lease.lease_seconds, "renewed": lease.renewed}})
        except LinkBrokenError:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ACCEPT_SECONDS):
                report = await child.report()
                return report is not None and report["event"] == "accepted"
        return False

    async def _outcome(self, child: Child, release: Callable[[], None]) -> Message:
        self._begun = True
        _log.info("worker.run_started", extra={"flow_run_id": str(self.id), "pid": child.pid})
        while (report := await child.report()) is not None:
            if report["event"] == "finished":
                self.finished = True
                release()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_SECONDS):
                        await asyncio.shield(child.exited)
                return report
        return {"died": str(await child.exited)}

    async def _settle(self, end: Message | None) -> None:
        gateway = self._around.gateway
        if self._reason == "abandoned" or (end and end.get("state") in _FINAL):
            return
        if self._reason == "cancelled" or (end and "cancelled" in end):
            await gateway.cancelled(self.id, *([end["cancelled"]] if end and "cancelled" in end else []))
        elif end is None:
            await gateway.put_back(self.id)
        elif self._reason == "worker stopped":
            await gateway.hand_back(self.id)
        elif self._reason == "lease lost":
            await gateway.crashed(self.id, _LEASE_LOST.format(self._around.worker))
        elif "unusable" in end:
            await gateway.failed(self.id, end["unusable"])
        else:
            await gateway.crashed(self.id, _why(end))

    @property
    def _scratch(self) -> Path:
        return self._around.scratch / str(self.id)

    def _clean_up(self) -> None:
        """Remove what a child that was killed could not: the files of its run."""
        task_id, generation = task_of_run(self.id, self.run.flow_run.get("idempotency_key"))
        workspaces.remove(workspaces.folder_of(self._around.workspaces, task_id, generation))
        shutil.rmtree(self._scratch, ignore_errors=True)


async def _tell(child: Child, message: Message) -> None:
    with contextlib.suppress(LinkBrokenError):
        await child.send(message)


def catalog_flow(entrypoint: str, catalog: str) -> str | None:
    """The name of the flow in the catalog that an entrypoint (`module.name` or `module:name`) means; None: another."""
    module, _, name = entrypoint.replace(":", ".").rpartition(".")
    return name if module == catalog else None


def _why(end: Message) -> str:
    if "died" in end:
        return f"the process running this task {end['died']}"
    if "error" in end:
        return str(end["error"])
    return f"the run stopped before its end: {end.get('stopped') or end.get('state')}"
