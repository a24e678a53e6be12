"""What a forked child does: open a client, wait for a run, execute it, see that everything arrived, end.

Reports to the worker: `ready`; `accepted` (from now on the run is the child's business); `finished` (the run's last
known state, or why there is none). The child runs one flow run, so nothing of one task is left for the next. What the
worker still sends while it runs are renewals of its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import inspect
import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import httpx
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import SettingsContext, get_settings_context
from prefect.events.worker import EventsWorker
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import run_flow
from prefect.flows import load_flow_from_flow_run
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOCAL_STORAGE_PATH,
    Settings,
    temporary_settings,
)

from ai_task_orchestra.lease import OWN_LEASE, Lease
from ai_task_orchestra.worker.child_client import ChildClient
from ai_task_orchestra.worker.child_link import ChildLink, LinkBrokenError, Message
from ai_task_orchestra.worker.log_shipper import LogShipper
from ai_task_orchestra.worker.patient_client import (
    one_try_settings,
    shared_by_prefect,
    unused_ssl_context,
)
from ai_task_orchestra.worker.process_tree import die_with_descendants
from ai_task_orchestra.worker.rehearsal import rehearse
from ai_task_orchestra.worker.relay import Relay

_log = logging.getLogger(__name__)

# A finished run whose state can't be reported is worth waiting for.
_PATIENCE_SECONDS: Final = 3600.0
_OPEN_SECONDS: Final = 2.0
_FLUSH_SECONDS: Final = 60.0
_STEP_SECONDS: Final = 0.05
_TURNS: Final = 10


@dataclass(frozen=True)
class _ChildSettings:
    engine: Settings
    one_try: Settings


@functools.cache
def _child_settings() -> _ChildSettings:
    # Prefect's heartbeat thread would hold a finished run for up to a second; our worker is the heartbeat.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}) as engine:
        return _ChildSettings(engine, one_try_settings())


def prepare() -> bool:
    """Make what all children have in common, before the first fork: 100 ms of CPU that no child has to spend.

    False if the rehearsal failed: the children are slower then, and nothing else.
    """
    with _engine_settings():
        try:
            return rehearse(_make_client, lambda flow, run: _execute(_without_storage_lookup(flow), run))
        except Exception as exc:
            _log.warning("worker.rehearsal_failed", exc_info=exc)
            return False


def _make_client(transport: httpx.AsyncBaseTransport | None = None) -> ChildClient:
    return ChildClient(
        _PATIENCE_SECONDS,
        ssl_context=unused_ssl_context(),
        one_try=_child_settings().one_try,
        transport=transport,
    )


def _engine_settings() -> SettingsContext:
    return SettingsContext(profile=get_settings_context().profile, settings=_child_settings().engine)


def run(link_socket: socket.socket, catalog: str) -> NoReturn:
    """The child's whole life, in a process that was just forked. Never returns."""
    code = 1
    try:
        link = ChildLink(link_socket)
        with _engine_settings():
            sync_flow = asyncio.run(_serve(link, catalog))
            if sync_flow:
                _run_sync(link, *sync_flow)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # no exit handlers: they belong to the template process


async def _serve(link: ChildLink, catalog: str) -> tuple[Flow[..., Any], FlowRun] | None:
    """Wait for a run and execute it; a flow that is not async is returned, to be run outside the event loop."""
    client = _make_client()
    async with shared_by_prefect(client):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OPEN_SECONDS):
                await client.api_healthcheck()  # opens the connection; without Prefect it is opened later
        await link.send({"event": "ready"})
        order = await link.receive()
        if order is None:  # not needed any more
            return None
        flow_run = FlowRun.model_validate(order["flow_run"])
        await link.send({"event": "accepted"})
        os.environ["PREFECT__FLOW_RUN_ID"] = str(flow_run.id)
        lease = Lease(order["lease"]["seconds"])
        lease.renew(order["lease"]["renewed"])
        OWN_LEASE.set(lease)
        watch = asyncio.create_task(_die_with_worker(link, lease))
        try:
            flow = _from_catalog(order, catalog)
            if flow and flow.isasync:
                await _run_ours(link, client, order, flow_run, flow)
            else:
                return await _run_theirs(link, client, order, flow_run, flow)
        finally:
            watch.cancel()
    return None


def _from_catalog(order: Message, catalog: str) -> Flow[..., Any] | None:
    name = order.get("flow")
    return _without_storage_lookup(getattr(importlib.import_module(catalog), name)) if name else None


async def _run_ours(
    link: ChildLink, client: ChildClient, order: Message, flow_run: FlowRun, flow: Flow[..., Any]
) -> None:
    """A flow of the catalog; what it logs and emits goes to the worker."""
    client.begin(flow_run)
    async with Relay(link).collecting(flow_run, {**order.get("names", {}), "flow": flow.name}):
        report = await _execute(flow, flow_run)
        await link.send({"event": "finished", **report})
    await client.finish()


async def _run_theirs(
    link: ChildLink, client: ChildClient, order: Message, flow_run: FlowRun, flow: Flow[..., Any] | None
) -> tuple[Flow[..., Any], FlowRun] | None:
    """Somebody else's flow, which may use Prefect in any way; one that is not async is returned instead."""
    async with LogShipper(client).collecting(_FLUSH_SECONDS):
        problem = ""
        if flow is None:
            flow, problem = await _load(order, flow_run, client)
        if flow and not flow.isasync:
            return flow, flow_run
        report = await _execute(flow, flow_run) if flow else {"unusable": problem}
        await link.send({"event": "finished", **report})
        await _drain_events()
    return None


async def _load(order: Message, flow_run: FlowRun, client: ChildClient) -> tuple[Flow[..., Any] | None, str]:
    """The flow as its deployment says, or the problem."""
    os.makedirs(order["scratch"], exist_ok=True)  # noqa: PTH103
    os.chdir(order["scratch"])  # Prefect copies a deployment's files into the working directory
    await client.claim_for_this_process(flow_run.id)
    try:
        return await load_flow_from_flow_run(flow_run=flow_run, use_placeholder_flow=False), ""
    except Exception as exc:
        _log.warning("worker.flow_not_loaded", exc_info=exc, extra={"flow_run_id": str(flow_run.id)})
        return None, f"the flow could not be loaded: {type(exc).__name__}: {exc}"


def _without_storage_lookup(flow: Flow[..., Any]) -> Flow[..., Any]:
    """Without a storage of its own a flow asks the server for the default one at each run, even to store nothing."""
    if flow.persist_result is False and flow.result_storage is None:
        flow.result_storage = PREFECT_LOCAL_STORAGE_PATH.value()
    return flow


def _as_passed(flow_run: FlowRun) -> FlowRun:
    """Without its deployment the engine starts no thread that watches for a suspension (30 ms before, 200 ms after).

    The engine reads the run again once it is Running, so contexts, logs and artifacts know the deployment.
    """
    return flow_run.model_copy(update={"deployment_id": None})


async def _execute(flow: Flow[..., Any], flow_run: FlowRun) -> dict[str, Any]:
    """Run an async flow; what the worker should know of the end."""
    with _engine_end() as report:
        if flow.isgenerator:
            async for _ in run_flow(flow, flow_run=_as_passed(flow_run)):  # type: ignore[union-attr]
                pass
        else:
            outcome = run_flow(flow, flow_run=_as_passed(flow_run), return_type="state")
            report |= _state_report(await outcome)  # type: ignore[misc]
    return report


def _run_sync(link: ChildLink, flow: Flow[..., Any], flow_run: FlowRun) -> None:
    """Run a flow that is not async the way Prefect itself does: on the main thread, with no event loop around it."""
    with _engine_end() as report:
        outcome = run_flow(flow, flow_run=_as_passed(flow_run), return_type="result" if flow.isgenerator else "state")
        if inspect.isgenerator(outcome):
            for _ in outcome:
                pass
        else:
            report |= _state_report(outcome)
    with contextlib.suppress(LinkBrokenError):
        link.send_blocking({"event": "finished", **report})
    asyncio.run(_flush())


def _state_report(state: Any) -> dict[str, Any]:
    return {"state": state.type.value} if isinstance(state, State) else {}


@contextlib.contextmanager
def _engine_end() -> Iterator[dict[str, Any]]:
    """Turns what the engine raises into a report; the worker then looks at the run and decides what is to be done."""
    report: dict[str, Any] = {}
    try:
        yield report
    except (Abort, Pause) as exc:
        report["stopped"] = str(exc)
    except BaseException as exc:
        traceback.print_exc()
        report["error"] = f"{type(exc).__name__}: {exc}"


async def _die_with_worker(link: ChildLink, lease: Lease) -> None:
    """End with everything below us when the worker is gone, or has no lease on this run any more.

    The former is a second net below the kernel's death signal, which not every system has. The latter also stops us
    when the worker is frozen, or we were frozen along with it.
    """
    listening = asyncio.create_task(_take_renewals(link, lease))
    try:
        while not listening.done():
            await asyncio.wait({listening}, timeout=max(lease.left, _STEP_SECONDS))
            for _ in range(_TURNS):  # if only we were frozen, renewals have arrived and need a turn to be read
                if not lease.held:
                    await asyncio.sleep(0)
            if not lease.held:
                break
        die_with_descendants()
    finally:
        listening.cancel()


async def _take_renewals(link: ChildLink, lease: Lease) -> None:
    """Until the worker has closed the connection."""
    with contextlib.suppress(LinkBrokenError):
        while (message := await link.receive()) is not None:
            lease.renew(message["renewed"])


async def _drain_events() -> None:
    drained = EventsWorker.drain_all(timeout=_FLUSH_SECONDS)
    if inspect.isawaitable(drained):
        await drained


async def _flush() -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_SECONDS):
            await APILogHandler.aflush()
    await _drain_events()
