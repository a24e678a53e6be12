"""A child's own means of not outliving its parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import BinaryIO

TIDY_SECONDS = 1.0
"""How long a group has to remove what it left half done."""

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, lifeline: BinaryIO, *, whole_group: bool = False) -> None:
    """End this process when process `parent` ends.

    Two independent means, because neither is enough alone: the end of `lifeline` (a pipe that only the parent holds
    open) works everywhere but needs a running interpreter, which a native call may block; the kernel's death signal
    needs nothing, but exists on Linux only. `whole_group` ends the process group, which this process must lead, and
    relies on the pipe alone.
    """
    threading.Thread(target=_wait_for_end, args=(lifeline, whole_group), name="lifeline", daemon=True).start()
    if sys.platform == "linux" and not whole_group:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we could ask to be told
        os._exit(0)


def _wait_for_end(lifeline: BinaryIO, whole_group: bool) -> None:
    while lifeline.read(4096):
        pass
    if whole_group:
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(TIDY_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)
