"""What stands around one program: its account, what it may see and reach, what it may use."""

from __future__ import annotations

import os

from ai_task_orchestra.isolation import landlock, namespaces, seccomp
from ai_task_orchestra.isolation.kernel import (
    LINUX,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    prctl,
)
from ai_task_orchestra.isolation.limits import Limits, tasks_of_account
from ai_task_orchestra.isolation.mounts import PrivateRoot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

NICENESS = 5
_LAST_CAPABILITY = 63
# Supervisor and its starter, which count as processes of the account in a user namespace.
_TASKS_OF_OURS = 2
# Shared memory that a program may fill beside its resident memory.
_SHARED_MEMORY_SHARE = 4
_SHARED_MEMORY_BYTES = 1 << 30


class Jail:
    """The confinement of one program, as `flows.clients.confinement` wrote it down.

    Level 0 has account and limits only. 1. `enter` (level 2) moves the supervisor into namespaces and a root folder of
    their own; 2. `close` is called in the process that is about to become the program.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        """`readable`, `writable` and `devices` are paths; `account` is a user and a group id, None for our own."""
        self.level: int = given["level"]
        self.network: bool = given["network"]
        self.workspace: str = given["workspace"]
        self.account: tuple[int, int] | None = given["account"]
        self.groups: Sequence[int] = given["groups"]
        self.limits = Limits(given["limits"])
        self._readable: Sequence[str] = given["readable"]
        self._devices: Sequence[str] = given["devices"]
        self._temporary: str = given["temporary"]

    def enter(self) -> None:
        """Make the root folder; in namespaces of our own, as their first process.

        Raises:
            OSError: the kernel does not let us.
        """
        root = PrivateRoot()
        root.add_writable(self.workspace)
        for path in self._devices:
            root.add_device(path)
        for path in (*self._readable, "/sys"):
            root.add(path)
        root.add_writable(self._temporary, at="/tmp")
        root.enter(shared_memory_bytes=self.limits.memory // _SHARED_MEMORY_SHARE or _SHARED_MEMORY_BYTES)

    def close(self) -> None:
        """Give up what the program is not to have. The order matters: each step needs what a later one takes away.

        Raises:
            OSError: the kernel does not let us.
        """
        self.limits.apply(tasks_beside=self._tasks_beside())
        os.nice(NICENESS)
        _prefer_as_victim()
        if os.geteuid() == 0 and (self.account or self.level):
            for capability in range(_LAST_CAPABILITY + 1):
                prctl(PR_CAPBSET_DROP, capability)
        if self.account is not None:
            uid, gid = self.account
            os.setgroups(self.groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if self.level >= 1:
            if landlock.version() >= landlock.FIRST_USABLE_VERSION:
                landlock.restrict(self._rules())
            seccomp.install(self._families(), apart=self.level >= 2)

    def _tasks_beside(self) -> int:
        if self.account is not None or not self.limits.processes or not LINUX:
            return 0
        return _TASKS_OF_OURS if self.level >= 2 else tasks_of_account(os.getuid())

    def _rules(self) -> list[tuple[str, int]]:
        rules = [(path, landlock.READ) for path in (*self._readable, "/sys")]
        # CUDA names its threads there; what may be written of other processes the kernel decides as ever.
        rules += [("/proc", landlock.READ | landlock.OVERWRITE)]
        rules += [(path, landlock.DEVICE) for path in self._devices]
        rules += [(self.workspace, landlock.WRITE)]
        if self.level >= 2:
            rules += [("/tmp", landlock.WRITE), ("/dev/shm", landlock.WRITE)]
        return rules

    def _families(self) -> tuple[int, ...]:
        """Which sockets: those of the internet lead nowhere in a network namespace without any interface.

        Unix sockets lead to whatever listens for our account, a session's own service manager for example.
        """
        local = () if self.account is None and self.level < 2 else (seccomp.AF_UNIX,)
        if not self.network and self.level < 2:
            return local
        return (*local, seccomp.AF_INET, seccomp.AF_INET6, seccomp.AF_NETLINK)


def enter_namespaces(jail: Jail) -> int:
    """Level 2's first step; the process id of the first process in there, 0 in that process itself.

    Raises:
        OSError: the kernel does not let us.
    """
    namespaces.enter(network=jail.network)
    return namespaces.fork_first()


def _prefer_as_victim() -> None:
    """If memory runs out, the kernel ends the program and not one of ours."""
    prctl(PR_SET_DUMPABLE, 1)  # else the file is root's; becoming the program would do the same
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    except OSError:
        pass
