"""How much of the machine is ours."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import Final

# What a container may use, by the two kinds of control groups.
_CONTAINER: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@functools.cache
def memory_bytes() -> int:
    """The machine's memory, or what our container may use of it."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found = min(found, int(Path(path).read_text()))
    return found
