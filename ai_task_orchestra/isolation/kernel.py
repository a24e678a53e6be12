"""System calls that Python does not offer, by number where the C library does not offer them either."""

from __future__ import annotations

import ctypes
import os
import sys

LINUX = sys.platform == "linux"
MACHINE = os.uname().machine

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """`result`, unless it is the C library's way of saying that something failed.

    Raises:
        OSError: its `strerror` begins with `what`.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: int | bytes | None) -> int:
    """Call the kernel; `what` names the call in errors.

    Raises:
        OSError: it failed.
    """
    longs = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return checked(_libc.syscall(ctypes.c_long(number), *longs), what)


def prctl(option: int, value: int | bytes = 0, more: int | bytes = 0) -> int:
    """Set one of the kernel's per-process options; nothing outside Linux. Negative if it failed."""
    if not LINUX:
        return 0
    longs = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in (value, more)]
    return int(_libc.prctl(option, *longs, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def unshare(flags: int) -> None:
    """Move into new namespaces.

    Raises:
        OSError: the kernel does not let us.
    """
    checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """As mount(2).

    Raises:
        OSError: the kernel does not let us.
    """
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    checked(result, f"mount {kind or 'flags'} on {target}")


def umount(target: str, flags: int) -> None:
    """As umount2(2).

    Raises:
        OSError: the kernel does not let us.
    """
    checked(_libc.umount2(os.fsencode(target), flags), f"umount {target}")
