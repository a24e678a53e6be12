"""Whole trees of processes: dying with the parent, killing everything below a process, sweeping what escaped.

On Linux a process that asked for it (`adopt_orphans`) becomes the parent of every descendant whose own parent died,
daemons with a session of their own included: nothing below it can get away. Elsewhere there is no such thing; there
process groups and the end of a pipe must do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NoReturn

import psutil

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_SWEEP_SECONDS: Final = 2.0
_SWEEP_STEP_SECONDS: Final = 0.005


def die_with_parent(parent: int, death_signal: int = signal.SIGKILL) -> bool:
    """Have the kernel send us `death_signal` when the parent dies; False if `parent` is gone already.

    To be called from the main thread: the signal belongs to the thread that made us. Checking the parent after arming
    closes the gap in which it may have died unnoticed.
    """
    _prctl(_PR_SET_PDEATHSIG, int(death_signal))
    return os.getppid() == parent


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies (Linux only)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def children_of(pid: int) -> list[int]:
    """The direct children of a process; empty if it is gone."""
    found: list[int] = []
    try:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    except OSError:
        return []
    if not found and not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        with contextlib.suppress(psutil.Error):  # a kernel without that file, or no Linux
            return [child.pid for child in psutil.Process(pid).children()]
    return found


def kill_tree(root: int) -> set[int]:
    """Kill `root`, everything below it and its process group; the processes hit.

    Everything is stopped first, until nothing new is found: a process that forks faster than we look can't escape.
    """
    killed = _kill_all(lambda: _tree(root))
    with contextlib.suppress(OSError):
        if os.getpgid(root) == root:
            os.killpg(root, signal.SIGKILL)
    return killed


def die_with_descendants() -> NoReturn:
    """Kill everything below this process, and then its process group."""
    us = os.getpid()
    _kill_all(lambda: _tree(us) - {us})
    os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


def _kill_all(find: Callable[[], set[int]]) -> set[int]:
    stopped: set[int] = set()
    while fresh := find() - stopped:
        for pid in fresh:
            _send(pid, signal.SIGSTOP)
        stopped |= fresh
    for pid in stopped:
        _send(pid, signal.SIGKILL)
    return stopped


def sweep_orphans(own: Iterable[int]) -> int:
    """Kill and reap every child of this process that is none of its `own`; the number of processes hit.

    For a process that adopts orphans. It waits until they are gone, at most two seconds.
    """
    mine = set(own)
    hit: set[int] = set()
    deadline = time.monotonic() + _SWEEP_SECONDS
    while orphans := set(children_of(os.getpid())) - mine:
        for pid in orphans:
            hit |= kill_tree(pid)
        for pid in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            break
        time.sleep(_SWEEP_STEP_SECONDS)
    return len(hit)


def _tree(root: int) -> set[int]:
    found: set[int] = set()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children_of(pid)
    return found


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
