"""Tries what the kernel offers, in processes of its own; started by `offer` as `main()`.

Writes a dictionary, as `marshal` does, to standard output: `landlock` (its version, 0 for none), `accounts` (the first
of the account numbers that tasks may have; 0: none), and, empty or the reason why not, `seccomp` and `namespaces`.
"""

from __future__ import annotations

import marshal
import os
import signal

from ai_task_orchestra.isolation import landlock, seccomp
from ai_task_orchestra.isolation.jail import Jail, enter_namespaces
from ai_task_orchestra.isolation.kernel import LINUX, PR_SET_NO_NEW_PRIVS, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Account numbers that nobody assigns: between those of containers and those of image builders; where numbers end at
# 65535, as in many containers, those that service managers give out for the life of a process.
ACCOUNT_RANGES = ((1_900_000_000, 100_000_000), (61_184, 4_336))


def main() -> None:
    """All trials; never returns."""
    try:
        if not LINUX:
            found: dict[str, int | str] = {"landlock": 0, "accounts": 0, "seccomp": _NO, "namespaces": _NO}
        else:
            found = {
                "landlock": landlock.version(),
                "accounts": next((first for first, _ in ACCOUNT_RANGES if _usable(first)), 0),
                "seccomp": _problem(_seccomp) if seccomp.known_machine() else "unknown kind of machine",
                "namespaces": _problem(_namespaces),
            }
        os.write(1, marshal.dumps(found))
    finally:
        os._exit(0)


_NO = "not on this system"


def _usable(account: int) -> bool:
    """Whether a process may become this account, and files may be given to it: only root's."""
    return os.geteuid() == 0 and not _problem(lambda: _become(account))


def _become(account: int) -> None:
    os.setgroups([])
    os.setresgid(account, account, account)
    os.setresuid(account, account, account)


def _seccomp() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install((seccomp.AF_UNIX,), apart=False)


def _namespaces() -> None:
    workspace = f"/tmp/.orchestra-{os.urandom(8).hex()}"
    os.mkdir(workspace, 0o700)
    try:
        if problem := _problem(lambda: _enter(workspace)):
            raise OSError(0, problem)
    finally:
        _remove(workspace)


def _enter(workspace: str) -> None:
    temporary = f"{workspace}/.tmp"
    os.mkdir(temporary, 0o700)
    jail = Jail(
        {
            "level": 2,
            "network": False,
            "workspace": workspace,
            "temporary": temporary,
            "account": None,
            "groups": [],
            "limits": {},
            "readable": ["/usr", "/lib", "/lib64", "/bin", "/etc/passwd"],
            "devices": ["/dev/null"],
        }
    )
    first = enter_namespaces(jail)
    if first == 0:
        jail.enter()
    elif os.waitpid(first, 0)[1]:
        raise OSError(0, "the first process in there was ended")


def _remove(folder: str) -> None:
    """A folder with nothing but folders in it: the mount points of the trial."""
    for top, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            os.rmdir(os.path.join(top, name))
    os.rmdir(folder)


def _problem(work: Callable[[], None]) -> str:
    """Why `work` can't be done, found out by a process that does nothing else; empty if it can."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except OSError as exc:
            os.write(writer, (exc.strerror or str(exc)).encode()[:500])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    return said or ("" if status == 0 else f"ended by {signal.Signals(os.WTERMSIG(status)).name}")
