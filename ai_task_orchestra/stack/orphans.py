"""Processes that outlived the child which had started them.

Linux hands them to the nearest ancestor that asked for it; `orchestra up` asks, so that nothing it caused stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys

import psutil

logger = logging.getLogger(__name__)

PR_SET_CHILD_SUBREAPER = 36


class OrphanSweep:
    """Finds and ends orphans that became our children.

    Each supervised child has a session of its own, what we run ourselves shares ours: a direct child of another
    session that we do not supervise has been left to us.
    """

    def __init__(self) -> None:
        self._seen_before: set[psutil.Process] = set()
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def end_orphans(self, supervised: set[int]) -> None:
        """Kill and reap the orphans; `supervised` are the process ids that are none.

        Only what was one at the last call too: a child that is being started just now is not supervised yet.
        """
        strangers = {child for child in self._strangers() if child.pid not in supervised}
        for child in strangers & self._seen_before:
            logger.warning("orphan_ended", extra={"pid": child.pid})
            _end(child)
        self._seen_before = strangers

    def end_all(self) -> None:
        """Kill and reap whatever is left, the orphans of orphans included."""
        while strangers := self._strangers():
            for child in strangers:
                _end(child)

    @staticmethod
    def _strangers() -> list[psutil.Process]:
        ours = os.getsid(0)
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(child.pid) != ours:
                    found.append(child)
        return found


def _end(child: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        child.kill()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child.pid, 0)
