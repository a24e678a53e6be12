"""Our own processes hold keys and passwords: nobody of our account is to read them from there."""

from __future__ import annotations

from ai_task_orchestra.isolation.kernel import PR_SET_DUMPABLE, prctl


def close_own_memory() -> None:
    """Close environment and memory of this process to others of its account: no /proc/<pid>/environ, no debugger.

    Processes that are forked inherit it; those that become another program do not. Root may read everything as ever.
    """
    prctl(PR_SET_DUMPABLE, 0)
