"""A child's log lines and events on their way to the worker, which ships those of all its children together.

Shipped by each child itself they cost Prefect's server a request, a websocket and four look-ups per run, and the child
a thread with a client of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final

from prefect.client.schemas.objects import FlowRun
from prefect.context import TaskRunContext
from prefect.events import Event, RelatedResource
from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient
from prefect.logging.handlers import set_api_log_sink

from ai_task_orchestra import protocol
from ai_task_orchestra.worker.child_link import RELAYED, ChildLink, LinkBrokenError

_INTERVAL_SECONDS: Final = 0.1
_ITEMS_PER_MESSAGE: Final = 200
_BYTES_PER_MESSAGE: Final = 4_000_000


class Relay:
    """Collects what Prefect's log handler and event worker emit, from any thread, and sends it over the link."""

    def __init__(self, link: ChildLink) -> None:
        self._link = link
        self._lines: deque[dict[str, Any]] = deque()
        self._events: deque[dict[str, Any]] = deque()
        self._sending = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def collecting(self, flow_run: FlowRun, names: dict[str, str]) -> AsyncIterator[None]:
        """Take over what is logged and emitted; all of it has been sent when this context ends.

        `names`: of the run's flow and deployment; events tell what they belong to.
        """
        set_api_log_sink(self._lines.append)
        with _in_place_of_prefects(_DirectEvents(self, _surroundings(flow_run, names))):
            sending = asyncio.create_task(self._send_regularly())
            try:
                yield
            finally:
                sending.cancel()
                events = EventsWorker.instance()
                if isinstance(events, EventsWorker):  # Prefect did not take ours: its own runs in a thread
                    await asyncio.to_thread(events.wait_until_empty)
                set_api_log_sink(None)
                with contextlib.suppress(LinkBrokenError):  # the worker is gone, and we are about to be
                    await self.send()

    def put(self, item: tuple[str, Event]) -> None:
        """What Prefect's client for process pools calls with each event."""
        self._events.append(item[1].model_dump(mode="json"))

    async def send(self) -> None:
        """Send everything collected so far.

        Raises:
            LinkBrokenError: the worker is gone.
        """
        async with self._sending:
            while self._lines or self._events:
                lines, events = _batch(self._lines), _batch(self._events)
                await self._link.send({"event": RELAYED, "lines": lines, "events": events})

    async def _send_regularly(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            # A message that is cut short would make everything after it unreadable.
            await asyncio.shield(asyncio.create_task(self.send()))


class _DirectEvents:
    """Stands where Prefect keeps its event worker: adds what an event belongs to and hands it on, in no time."""

    client_type = ProcessPoolForwardingEventsClient
    _stopped = False

    def __init__(self, relay: Relay, surroundings: Iterable[RelatedResource]) -> None:
        self.relay = relay
        self._surroundings = list(surroundings)

    def send(self, event: Event) -> None:
        involved = {resource.id for resource in event.involved_resources}
        event.related += [each for each in self._related() if each.id not in involved]
        self.relay.put(("event", event))

    def _related(self) -> Iterable[RelatedResource]:
        yield from self._surroundings
        if context := TaskRunContext.get():
            yield _related("task-run", context.task_run.id, context.task_run.name)


@contextlib.contextmanager
def _in_place_of_prefects(events: _DirectEvents) -> Iterator[None]:
    """Have Prefect find `events` where it looks for its event worker.

    Where an event goes is an option of Prefect's, made for its process pools. That it need not pass through a thread
    on its way there is not: if a later Prefect keeps its workers elsewhere, the events do pass through one.
    """
    options = (("event_queue", events.relay),)
    key = hash((EventsWorker, ProcessPoolForwardingEventsClient, options))
    instances: dict[int, Any] = getattr(EventsWorker, "_instances", {})
    EventsWorker.set_client_override(ProcessPoolForwardingEventsClient, event_queue=events.relay)
    instances[key] = events
    try:
        yield
    finally:
        instances.pop(key, None)
        EventsWorker.set_client_override(None)


def _surroundings(flow_run: FlowRun, names: dict[str, str]) -> Iterable[RelatedResource]:
    """What every event of a run belongs to, as Prefect itself would find out by asking its server."""
    yield _related("flow-run", flow_run.id, flow_run.name)
    yield _related("flow", flow_run.flow_id, names.get("flow", ""))
    if flow_run.deployment_id:
        yield _related("deployment", flow_run.deployment_id, names.get("deployment", ""))
    if flow_run.work_queue_id:
        yield _related("work-queue", flow_run.work_queue_id, flow_run.work_queue_name or "")
    if flow_run.work_pool_id:
        kind = {"prefect.work-pool.type": protocol.WORKER_TYPE}
        yield _related("work-pool", flow_run.work_pool_id, flow_run.work_pool_name or "", **kind)
    for tag in sorted(flow_run.tags):
        yield RelatedResource({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"})


def _related(kind: str, identity: object, name: str, **more: str) -> RelatedResource:
    resource = {
        "prefect.resource.id": f"prefect.{kind}.{identity}",
        "prefect.resource.role": kind,
        "prefect.resource.name": name,
    }
    return RelatedResource(resource | more)


def _batch(items: deque[dict[str, Any]]) -> list[dict[str, Any]]:
    size = 0
    batch = []
    for _ in itertools.repeat(None, min(_ITEMS_PER_MESSAGE, len(items))):
        item = items.popleft()
        size += item.get("__payload_size__", 0)
        batch.append(item)
        if size > _BYTES_PER_MESSAGE:
            break
    return batch
