"""Namespaces: a program that sees only its own processes, files and, unless it may use the network, no network."""

from __future__ import annotations

import os

from ai_task_orchestra.isolation.kernel import PR_SET_PDEATHSIG, prctl, unshare

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_SIGKILL = 9


def enter(*, network: bool) -> int:
    """Move into namespaces of our own. What is forked next is the first process in there; its end ends all others.

    Who may not do that directly does it inside a user namespace that maps only the own account.

    Returns:
        the flags of the namespaces.

    Raises:
        OSError: the kernel does not let us.
    """
    flags = _NEWNS | _NEWIPC | _NEWPID | (0 if network else _NEWNET)
    if os.geteuid() == 0:
        unshare(flags)
        return flags
    uid, gid = os.getuid(), os.getgid()
    unshare(flags | _NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    return flags | _NEWUSER


def fork_first() -> int:
    """Fork the first process of the new namespaces; in it (0 is returned) our own end is its end, too."""
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_PDEATHSIG, _SIGKILL)
    return pid
