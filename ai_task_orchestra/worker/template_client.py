"""The worker's side of one template process and of its children."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ai_task_orchestra.errors import OrchestraError
from ai_task_orchestra.worker.child_link import RELAYED, ChildLink, LinkBrokenError, Message, encode

_log = logging.getLogger(__name__)

_numbers = itertools.count(1)
# A template process that does not do as it is told for this long is killed, and its children with it.
_KILL_SECONDS: Final = 5.0


class TemplateProcessError(OrchestraError):
    """The template process could not import the flows."""

    code: ClassVar[str] = "template_process"


@dataclass(frozen=True)
class Exit:
    """How a child ended: `code` as in `subprocess` (negative: a signal); None if its template process died, too."""

    code: int | None

    def __str__(self) -> str:
        if self.code is None:
            return "ended together with the worker's template process"
        if self.code < 0:
            return f"was killed by signal {-self.code}"
        return f"exited with code {self.code}"


class Child:
    """One forked child: what it says, and how it ended once it has."""

    def __init__(
        self, number: int, link: ChildLink, template: TemplateClient, on_relay: Callable[[Message], None]
    ) -> None:
        self.number = number
        self._on_relay = on_relay
        self.template = template
        self.pid: int | None = None
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._link = link
        self.silent = asyncio.Event()  # it has closed its connection: it ends, or has ended
        self._reports: asyncio.Queue[Message | None] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def send(self, message: Message) -> None:
        """Tell the child something.

        Raises:
            LinkBrokenError: it is gone.
        """
        await self._link.send(message)

    async def report(self) -> Message | None:
        """The child's next report; None once it has closed the connection, again and again."""
        report = await self._reports.get()
        if report is None:
            self._reports.put_nowait(None)
        return report

    def dismiss(self) -> None:
        """Let a parked child go: it ends when it finds its connection closed."""
        self._link.end()

    async def _read(self) -> None:
        try:
            while (report := await self._link.receive()) is not None:
                if report["event"] == RELAYED:
                    self._on_relay(report)
                else:
                    self._reports.put_nowait(report)
        except LinkBrokenError as exc:
            _log.error("worker.child_link_broken", extra={"child": self.number, "pid": self.pid, "error": str(exc)})
        finally:
            self._link.close()
            self.silent.set()
            self._reports.put_nowait(None)

    async def kill(self) -> Exit:
        """Kill the child with everything below it; returns once nothing of it is left."""
        if not self.exited.done():
            await self.template.kill(self)
        return await asyncio.shield(self.exited)


class TemplateClient:
    """One template process: asks for forks and kills, hears of exits.

    Its life: `start`, then forks, then `retire` (it stays until its last child has ended) or `close` (all die now).
    """

    def __init__(
        self, process: asyncio.subprocess.Process, control: socket.socket, on_relay: Callable[[Message], None]
    ) -> None:
        self._process = process
        self._on_relay = on_relay
        self._control = control
        self._link = ChildLink(control)
        self._children: dict[int, Child] = {}
        self._reading: asyncio.Task[None] | None = None
        self.flows: frozenset[str] = frozenset()
        self.retired = False
        self.gone = asyncio.Event()

    @classmethod
    async def start(
        cls, catalog: str, environment: Mapping[str, str], on_relay: Callable[[Message], None]
    ) -> TemplateClient:
        """Start a template process and wait until it has imported everything (seconds).

        `on_relay`: gets what the children pass on besides their reports.

        Raises:
            TemplateProcessError: it could not; the message says why.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "ai_task_orchestra.worker.template_process"),
                *("--control-fd", str(theirs.fileno()), "--parent", str(os.getpid()), "--catalog", catalog),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
        template = cls(process, ours, on_relay)
        try:
            await template._wait_ready()
        except BaseException:
            await template.close()
            raise
        template._reading = asyncio.create_task(template._read_reports())
        return template

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self) -> Child:
        """Ask for a child; it reports `ready` over its own connection.

        Raises:
            TemplateProcessError: the process is gone or does not read any more.
        """
        ours, theirs = socket.socketpair()
        number = next(_numbers)
        request = encode({"op": "fork", "child": number})
        with theirs:
            try:
                complete = socket.send_fds(self._control, [request], [theirs.fileno()]) == len(request)
            except OSError:
                complete = False
        if not complete:
            ours.close()
            raise TemplateProcessError("the template process takes no requests")
        child = self._children[number] = Child(number, ChildLink(ours), self, self._on_relay)
        return child

    async def kill(self, child: Child) -> None:
        """Kill a child's whole tree; if that is not reported in time, the template process and all its children."""
        try:
            await self._link.send({"op": "kill", "child": child.number})
            async with asyncio.timeout(_KILL_SECONDS):
                await asyncio.shield(child.exited)
        except (LinkBrokenError, TimeoutError):
            _log.error("worker.template_process_hangs", extra={"pid": self.pid})
            self._signal(signal.SIGKILL)

    async def retire(self) -> None:
        """No more children; the process ends after its last one."""
        self.retired = True
        try:
            await self._link.send({"op": "retire"})
        except LinkBrokenError:
            self._signal(signal.SIGKILL)

    async def close(self) -> None:
        """End it now, and everything below it."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        if self._reading:
            await self._reading
        else:
            self._link.close()

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _wait_ready(self) -> None:
        try:
            report = await self._link.receive()
        except LinkBrokenError:
            report = None
        if report is None or report["event"] != "ready":
            raise TemplateProcessError(str(report["error"]) if report else "the template process died while importing")
        if report["threads"] != 1 or not report["rehearsed"]:
            extra = {"threads": report["threads"], "rehearsed": report["rehearsed"]}
            _log.warning("worker.template_process_not_as_it_should_be", extra=extra)
        self.flows = frozenset(report["flows"])

    async def _read_reports(self) -> None:
        try:
            while (report := await self._link.receive()) is not None:
                self._take(report)
        except LinkBrokenError:
            _log.error("worker.template_process_link_broken", extra={"pid": self.pid})
            self._signal(signal.SIGKILL)
        await self._process.wait()
        self._link.close()
        for child in list(self._children.values()):
            self._ended(child, Exit(None))
        self.gone.set()

    def _take(self, report: Message) -> None:
        child = self._children.get(report["child"])
        if child is None:
            return
        if report["event"] == "forked":
            child.pid = report["pid"]
        elif report["event"] == "exited":
            if report["swept"]:
                _log.warning("worker.left_behind_processes_killed", extra={"count": report["swept"], "pid": child.pid})
            self._ended(child, Exit(report["code"]))

    def _ended(self, child: Child, how: Exit) -> None:
        self._children.pop(child.number, None)
        if not child.exited.done():
            child.exited.set_result(how)
