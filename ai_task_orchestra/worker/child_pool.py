"""Keeps parked children ready, always forked from a template process that has the present templates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Final, Self

from ai_task_orchestra.worker.child_link import Message
from ai_task_orchestra.worker.process_tree import adopt_orphans, children_of, kill_tree
from ai_task_orchestra.worker.template_client import Child, TemplateClient, TemplateProcessError
from ai_task_orchestra.worker.template_folder import TemplateFolder

_log = logging.getLogger(__name__)

# A replacement is forked a little after a child was taken, so that it does not compete with the run that just started.
_REPLACE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 30.0
_HEALTHY_SECONDS: Final = 10.0
# A catalog that was imported a moment ago would look the same if imported again.
_FRESH_SECONDS: Final = 10.0


class ChildPool:
    """An async context manager; at its end no process of it is left.

    Outside Linux orphans of a template process that was killed can't be found.
    """

    def __init__(
        self,
        catalog: str,
        environment: Mapping[str, str],
        *,
        parked: int,
        folder: TemplateFolder,
        on_ready: Callable[[], None],
        on_relay: Callable[[Message], None],
    ) -> None:
        """`parked`: how many children wait. `on_ready`: called for each that has become ready.

        `on_relay`: gets what children pass on besides their reports.
        """
        self._catalog = catalog
        self._environment = environment
        self._target = parked
        self._folder = folder
        self._on_ready = on_ready
        self._on_relay = on_relay
        self._parked: deque[Child] = deque()
        self._starting: set[Child] = set()
        self._current: TemplateClient | None = None
        self._current_since = 0.0
        self._all: set[TemplateClient] = set()
        self._work = asyncio.Event()
        self._available = asyncio.Event()
        self._failures = 0
        self._pause_until = 0.0
        self._renewals = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        adopt_orphans()
        self._work.set()
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await asyncio.gather(*(template.close() for template in self._all))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sweep()

    @property
    def ready(self) -> int:
        """How many runs can be handed over at once."""
        return len(self._parked)

    @property
    def process_ids(self) -> list[int]:
        return [template.pid for template in self._all]

    def check_templates(self) -> None:
        """If the template folder has changed, hand out no child of the old content any more."""
        if self._folder.changed():
            _log.info("worker.templates_changed")
            self.renew()

    def renew(self) -> None:
        """Replace the template process; running children stay with theirs until they end."""
        self._renewals += 1
        self._pause_until = 0.0
        self._drop_current()
        self._work.set()

    async def has_flow(self, name: str) -> bool:
        """Whether the catalog has this flow; looks into a fresh catalog before it says no."""
        current = await self._template()
        if name in current.flows:
            return True
        old = time.monotonic() - self._current_since > _FRESH_SECONDS
        if current is self._current and (self._folder.changed(at_once=True) or old):
            self.renew()
        return name in (await self._template()).flows

    async def wait_ready(self) -> None:
        """Wait until a run can be handed over."""
        while not self._parked:
            self._available.clear()
            await self._available.wait()

    async def take(self) -> Child:
        """A parked child, as soon as there is one."""
        while True:
            while self._parked:
                child = self._parked.popleft()
                if not child.silent.is_set():
                    asyncio.get_running_loop().call_later(_REPLACE_SECONDS, self._work.set)
                    return child
            self._available.clear()
            await self._available.wait()

    async def _template(self) -> TemplateClient:
        while self._current is None:
            self._available.clear()
            await self._available.wait()
        return self._current

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(self._pause_until - time.monotonic(), 0.0) or None):
                    await self._work.wait()
            self._work.clear()
            if time.monotonic() < self._pause_until:
                continue
            if self._current and self._current.gone.is_set():
                _log.error("worker.template_process_died", extra={"pid": self._current.pid})
                self._drop_current()
                self._failed()
            elif self._current is None:
                await self._start_template()
            else:
                self._top_up(self._current)

    async def _start_template(self) -> None:
        self._sweep()
        renewals = self._renewals
        began = time.monotonic()
        try:
            template = await TemplateClient.start(self._catalog, self._environment, self._on_relay)
        except (TemplateProcessError, OSError) as exc:
            _log.error("worker.template_process_failed", extra={"error": str(exc)})
            self._failed()
            return
        _log.info(
            "worker.template_process_ready",
            extra={"pid": template.pid, "flows": len(template.flows), "seconds": round(time.monotonic() - began, 2)},
        )
        self._all.add(template)
        self._spawn(self._await_gone(template))
        self._work.set()
        if renewals != self._renewals:  # what it has imported is old already
            self._spawn(template.retire())
            return
        self._current, self._current_since = template, time.monotonic()
        self._available.set()

    def _top_up(self, template: TemplateClient) -> None:
        try:
            for _ in range(self._target - len(self._parked) - len(self._starting)):
                child = template.fork()
                self._starting.add(child)
                self._spawn(self._park(child))
        except TemplateProcessError as exc:
            _log.error("worker.fork_failed", extra={"error": str(exc)})
            self._drop_current()
            self._failed()

    async def _park(self, child: Child) -> None:
        began = time.monotonic()
        report = await child.report()
        self._starting.discard(child)
        if report is None:
            _log.error("worker.child_died_early", extra={"pid": child.pid, "how": str(await child.exited)})
            self._failed()
            return
        if child.template is not self._current:
            child.dismiss()
            return
        self._failures = 0
        _log.debug("worker.child_parked", extra={"pid": child.pid})
        self._parked.append(child)
        self._available.set()
        self._on_ready()
        await child.silent.wait()
        if child in self._parked:
            self._parked.remove(child)
            _log.warning("worker.parked_child_died", extra={"pid": child.pid})
            if time.monotonic() - began < _HEALTHY_SECONDS:
                self._failed()
        self._work.set()

    async def _await_gone(self, template: TemplateClient) -> None:
        await template.gone.wait()
        self._all.discard(template)
        self._work.set()

    def _drop_current(self) -> None:
        for child in self._parked:
            child.dismiss()
        self._parked.clear()
        if self._current:
            self._spawn(self._current.retire())
        self._current = None

    def _failed(self) -> None:
        """Wait longer with each failure in a row."""
        self._failures += 1
        self._pause_until = time.monotonic() + min(0.25 * 2**self._failures, _LONGEST_PAUSE_SECONDS)
        self._work.set()

    def _sweep(self) -> None:
        """Kill what came to us from a template process that was killed: it lives in sessions of its own."""
        templates = set(self.process_ids)
        for pid in children_of(os.getpid()):
            with contextlib.suppress(OSError):
                if pid not in templates and os.getsid(pid) != os.getsid(0):
                    hit = kill_tree(pid)
                    os.waitpid(pid, 0)
                    _log.warning("worker.orphans_killed", extra={"count": len(hit)})

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
