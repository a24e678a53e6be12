"""What our process does while programs run below it: adopts what escapes them, and keeps its memory to itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final

from flows.clients import _exec

_PR_SET_DUMPABLE: Final = 4
_PR_GET_DUMPABLE: Final = 3
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_SWEEP_SECONDS: Final = 3.0


class _Guard:
    """The kernel's switches of this process, shared by all programs that run at the moment.

    While there is any: orphans come to us, and a program of our own account can't read our environment or memory from
    /proc. Both are put back afterwards, since the process may have other uses.
    """

    def __init__(self) -> None:
        self._running = 0
        self._before = (0, 1)
        self.supervisors: set[int] = set()

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        self._running += 1
        if self._running == 1:
            self._before = _subreaper(), _dumpable()
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
            _prctl(_PR_SET_DUMPABLE, 0)
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                _prctl(_PR_SET_CHILD_SUBREAPER, self._before[0])
                _prctl(_PR_SET_DUMPABLE, self._before[1])


# Process-wide like the switches themselves.
_GUARD: Final = _Guard()


class Adoption:
    """One run of a supervisor, as its parent sees it.

    Normally the supervisor leaves nothing behind. A program that kills its supervisor makes us the adopter of what is
    left: children of ours that we did not have before and that are in a session of their own.
    """

    def __init__(self) -> None:
        self._children_before: set[int] = set()
        self._supervisor: int | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Keep the switches on; the supervisor is to be started inside."""
        with _GUARD.on():
            self._children_before = set(_exec.children_of(os.getpid()))
            try:
                yield
            finally:
                if self._supervisor is not None:
                    _GUARD.supervisors.discard(self._supervisor)

    def started(self, supervisor: int) -> None:
        """The supervisor has this process id. It takes a session of its own only after it was told its job."""
        self._supervisor = supervisor
        _GUARD.supervisors.add(supervisor)

    def sweep(self) -> int:
        """Kill what a dead supervisor left to us, and everything below that; the number of processes hit."""
        hit = 0
        deadline = time.monotonic() + _SWEEP_SECONDS
        while (strays := self._strays()) and time.monotonic() < deadline:
            everything = strays + [pid for stray in strays for pid in _exec.descendants(stray)]
            hit += len(everything)
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in everything:
                    with contextlib.suppress(OSError):
                        os.kill(pid, number)
            time.sleep(0.002)
            for stray in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(stray, os.WNOHANG)
        return hit

    def _strays(self) -> list[int]:
        ours = os.getsid(0)
        found = []
        for pid in set(_exec.children_of(os.getpid())) - self._children_before - _GUARD.supervisors:
            with contextlib.suppress(OSError):
                if os.getsid(pid) != ours:
                    found.append(pid)
        return found


def _prctl(option: int, value: int) -> int:
    if sys.platform != "linux":
        return 0
    return int(ctypes.CDLL(None).prctl(option, value, 0, 0, 0))


def _dumpable() -> int:
    # 2 ("only root may read core dumps") can't be set, only be found; 0 comes nearest.
    return 1 if _prctl(_PR_GET_DUMPABLE, 0) == 1 else 0


def _subreaper() -> int:
    if sys.platform != "linux":
        return 0
    value = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    return value.value
