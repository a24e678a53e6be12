"""The template process: imports Prefect and the flows once, then forks children that are ready in milliseconds.

    python -m ai_task_orchestra.worker.template_process --control-fd N --parent PID --catalog MODULE

It runs one thread and opens no client, because only then a fork is safe. It is the parent of all children, so it also
reaps them, kills their process trees on request, and sweeps what they leave behind. It ends, taking everything below
it along, when the worker closes the control connection or dies.

Requests: `fork` (child; a socket comes along with it), `kill` (child), `retire` (end once the last child has ended).
Reports: `ready` (flows, rehearsed, threads) or `failed` (error); `forked` (child, pid); `exited` (child, code, swept).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import threading
from collections import deque
from typing import Final, NoReturn

from ai_task_orchestra.isolation.offer import machine_offer
from ai_task_orchestra.isolation.own_memory import close_own_memory
from ai_task_orchestra.worker import parked_child
from ai_task_orchestra.worker.child_link import Decoder, LinkBrokenError, Message, encode
from ai_task_orchestra.worker.process_tree import adopt_orphans, die_with_parent, kill_tree, sweep_orphans

_READ_BYTES: Final = 64 * 1024
_MOST_SOCKETS: Final = 64
# Imported here so that no child has to: what a run uses and neither `prefect` nor the catalog imports by itself.
_PRELOAD: Final = (
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.artifacts",
    "prefect.client.orchestration",
    "prefect.events.clients",
    "prefect.events.worker",
    "prefect.logging.handlers",
)


class TemplateProcess:
    """Serves the worker until it closes the control connection, or until retired and childless."""

    def __init__(self, control: socket.socket, catalog: str) -> None:
        self._control = control
        self._catalog = catalog
        self._decoder = Decoder()
        self._sockets: deque[socket.socket] = deque()
        self._children: dict[int, int] = {}  # process id -> the worker's number for it
        self._retired = False
        self._ended = False
        self._wakeup, self._wakeup_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve; returns after everything below this process has been killed."""
        self._wakeup.setblocking(False)
        self._wakeup_out.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_out.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the worker's business
        signal.signal(signal.SIGTERM, self._on_terminate)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        try:
            while not self._ended and not (self._retired and not self._children):
                self._serve_once()
        finally:
            for pid in self._children:
                kill_tree(pid)
            sweep_orphans(())

    def report(self, event: str, **fields: object) -> None:
        """Tell the worker; if it is gone, end."""
        try:
            self._control.sendall(encode({"event": event, **fields}))
        except OSError:
            self._ended = True

    def _on_terminate(self, *_: object) -> None:
        self._ended = True

    def _serve_once(self) -> None:
        for key, _ in self._selector.select():
            if key.fileobj is self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    self._wakeup.recv(_READ_BYTES)
            else:
                self._take_requests()
        self._reap()

    def _take_requests(self) -> None:
        try:
            data, handles, _, _ = socket.recv_fds(self._control, _READ_BYTES, _MOST_SOCKETS)
            self._sockets += [socket.socket(fileno=handle) for handle in handles]
            requests = self._decoder.feed(data)
        except (ConnectionResetError, LinkBrokenError):
            data, requests = b"", []
        if not data:
            self._ended = True
        for request in requests:
            self._obey(request)

    def _obey(self, request: Message) -> None:
        if request["op"] == "fork":
            self._fork(request["child"], self._sockets.popleft())
        elif request["op"] == "kill":
            for pid, number in self._children.items():
                if number == request["child"]:
                    kill_tree(pid)
        elif request["op"] == "retire":
            self._retired = True

    def _fork(self, number: int, link: socket.socket) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(parent, link)
        link.close()
        self._children[pid] = number
        self.report("forked", child=number, pid=pid)

    def _become_child(self, parent: int, link: socket.socket) -> NoReturn:
        """In the new process: keep nothing of ours but the imported modules and its own connection."""
        try:
            signal.set_wakeup_fd(-1)
            for name in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(name, signal.SIG_DFL)
            os.setsid()
            if not die_with_parent(parent):
                os._exit(1)
            adopt_orphans()
            self._selector.close()
            for sock in (self._control, self._wakeup, self._wakeup_out, *self._sockets):
                sock.close()
            link.set_inheritable(False)
            parked_child.run(link, self._catalog)
        finally:
            os._exit(1)  # never back into the template's loop, whatever happens

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._children.pop(pid, None)
            if number is not None:
                swept = sweep_orphans(self._children)
                self.report("exited", child=number, code=os.waitstatus_to_exitcode(status), swept=swept)


def main(arguments: list[str] | None = None) -> int:
    """Import everything, then serve. The exit code is 1 when the flows can't be imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--catalog", required=True)
    options = parser.parse_args(arguments)
    if not die_with_parent(options.parent, signal.SIGTERM):
        return 1
    adopt_orphans()
    close_own_memory()
    control = socket.socket(fileno=options.control_fd)
    control.set_inheritable(False)
    template = TemplateProcess(control, options.catalog)
    try:
        flows = _import_everything(options.catalog)
    except Exception as exc:
        template.report("failed", error=f"{type(exc).__name__}: {exc}")
        raise
    rehearsed = parked_child.prepare()
    machine_offer()  # so that no child has to find out what this machine has for isolating programs
    gc.collect()
    gc.freeze()  # what is shared with the children stays shared: their collector won't touch it
    template.report("ready", flows=flows, rehearsed=rehearsed, threads=threading.active_count())
    template.run()
    return 0


def _import_everything(catalog: str) -> list[str]:
    """Import what a run needs; the names of the flows in the catalog."""
    from prefect import Flow

    module = importlib.import_module(catalog)
    for name in _PRELOAD:
        importlib.import_module(name)
    return sorted(name for name, value in vars(module).items() if isinstance(value, Flow))


if __name__ == "__main__":
    sys.exit(main())
