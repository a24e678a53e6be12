"""The folders in which attempts work: each has its own, holds a lock on it while it lives, and leaves nothing behind.

What could not tidy up, because it was killed together with its worker, is removed by the next worker that starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ai_task_orchestra.removal import remove_tree

# A younger folder may have been made by somebody who is about to lock it.
_YOUNG_SECONDS: Final = 60.0


def folder_of(root: Path, task_id: str, generation: int) -> Path:
    """Where an attempt works. A lost one may still be alive while the next one begins."""
    return root / task_id / str(generation)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, readable by nobody else, and hold its lock."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Remove the folder of an attempt with all that is in it, and its task's if nothing else is in that."""
    remove_tree(folder)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def remove_empty(folder: Path) -> bool:
    """The same in one or two system calls; False if there is something in it."""
    try:
        folder.rmdir()
    except OSError:
        return False
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
    return True


def sweep(root: Path, young_seconds: float = _YOUNG_SECONDS) -> int:
    """Remove every folder that nobody holds; how many there were."""
    removed = 0
    for folder in root.glob("*/*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime >= young_seconds and _is_left(folder):
                remove(folder)
                removed += 1
    return removed


def _is_left(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
