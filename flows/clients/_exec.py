"""Runs one program and makes sure that nothing of it is left: a small process between ours and the program.

Started by `flows.clients.processes` as `python -I -S _exec.py PARENT_PID STATUS_FD`, by path and with the standard
library only, so that it costs milliseconds. It adopts every descendant of the program whose own parent ends (Linux),
daemons with a session of their own included; whatever it adopts belongs to this one program, so programs that run
side by side never hit each other. The order:

    1. tie our life to the parent's, become the adopter of orphans
    2. read the job from standard input (see `read_job`)
    3. fork: the child gets a session of its own, dies with us, and becomes the program
    4. until it ends, or standard input closes (the parent stops us, or is dead): reap, and measure memory
    5. SIGTERM to all that is left, a moment later SIGKILL, until no child is left
    6. write one line to STATUS_FD: `ended EXIT_CODE CPU_SECONDS PEAK_RSS_BYTES`

If the program could not be started, a line `start ERRNO` or `network ERRNO` stands before that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

FIRST_SAMPLE_SECONDS = 0.02
LONGEST_SAMPLE_SECONDS = 0.25
SAMPLE_SHARE = 0.05  # of our time at most goes into looking at a large tree
KILL_SECONDS = 5.0  # a process in the kernel's own sleep can't be killed: give up on it then
EXIT_NOT_STARTED = 127
LINUX = sys.platform == "linux"
MAXRSS_UNIT = 1024 if LINUX else 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESET_SIGNALS = ("SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGXFSZ", "SIGUSR1", "SIGUSR2")


def prctl(option: int, value: int) -> None:
    """Set one of the kernel's per-process options; nothing outside Linux."""
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Job:
    """What to run. `network` False closes the network for it."""

    def __init__(self, fields: list[bytes]) -> None:
        self.cwd, network, grace, count, *rest = fields
        self.network = network == b"1"
        self.grace_seconds = float(grace)
        self.argv = rest[: int(count)]
        self.env = dict(entry.split(b"=", 1) for entry in rest[int(count) :])


def read_job(fd: int) -> Job | None:
    """A line with the number of bytes, then the fields with NULs between them.

    The fields are cwd, network (1 or 0), grace in seconds, argc, argv..., NAME=VALUE...

    None: the parent went away first.
    """
    head = b""
    while not head.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            return None
        head += byte
    left, parts = int(head), []
    while left:
        part = os.read(fd, left)
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return Job(b"".join(parts).split(b"\0"))


def start(job: Job, status_fd: int) -> int:
    """Fork; the process id of the program."""
    us = os.getpid()
    # A SIGTERM between fork and exec must neither get lost in our own handler nor end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return pid
    failed = b"start"
    try:
        os.setsid()
        for name in RESET_SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o077)
        if not job.network:
            failed = b"network"
            close_network()
            failed = b"start"
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != us:
            os._exit(EXIT_NOT_STARTED)
        os.chdir(job.cwd)
        os.execvpe(job.argv[0], job.argv, job.env)  # noqa: S606
    except OSError as exc:
        os.write(status_fd, b"%s %d\n" % (failed, exc.errno or 0))
    finally:
        os._exit(EXIT_NOT_STARTED)


def close_network() -> None:
    """Move into an empty network namespace: no interface, not even loopback, is up.

    Who may not make one directly gets it inside a user namespace that maps only the own account.
    """
    if not LINUX:
        raise OSError(38, "no network namespaces on this system")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) == 0:
        return
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, text.encode())
        os.close(fd)


def descendants(root: int) -> list[int]:
    """Every process below `root`, zombies included; nothing outside Linux: there the program's group must do."""
    below = children_of if _lists_children() else _scan().get
    found: list[int] = []
    waiting = [root]
    while waiting:
        children = below(waiting.pop()) or []
        found += children
        waiting += children
    return found


def children_of(pid: int) -> list[int]:
    """The direct children of a process, zombies included; empty if it is gone."""
    if not _lists_children():
        return _scan().get(pid, [])
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def _lists_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110


def _scan() -> dict[int, list[int]]:
    """Parents and their children from every process's own data, for kernels that do not list children."""
    children: dict[int, list[int]] = {}
    if LINUX:
        for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
            with contextlib.suppress(OSError):
                parent = int(read(f"/proc/{name}/stat").rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    return children


def read(path: str) -> bytes:
    """A small file of /proc."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def resident_bytes(pids: list[int]) -> int:
    """The resident sizes of these processes, added up."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            pages += int(read(f"/proc/{pid}/statm").split()[1])
    return pages * resource.getpagesize()


class Supervisor:
    """One program and everything below it."""

    def __init__(self, job: Job, status_fd: int) -> None:
        self.grace_seconds = job.grace_seconds
        self.exit_code: int | None = None
        self.peak_bytes = 0
        self.alone = False  # no child left
        self.stopped = False
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        self.program = start(job, status_fd)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def run(self) -> None:
        """Until the program ends or the parent wants no more of it."""
        interval = FIRST_SAMPLE_SECONDS
        while self.exit_code is None and not self.stopped:
            self._wait(interval, control=True)
            self._reap()
            began = time.monotonic()
            self.peak_bytes = max(self.peak_bytes, resident_bytes(descendants(os.getpid())))
            took = time.monotonic() - began
            interval = max(min(interval * 1.5, LONGEST_SAMPLE_SECONDS), took / SAMPLE_SHARE)

    def end(self) -> None:
        """End all that is left: asked first, then killed."""
        self._reap()
        self._signal_all(signal.SIGTERM)
        self._until_alone(self.grace_seconds)
        deadline = time.monotonic() + KILL_SECONDS
        while not self.alone and time.monotonic() < deadline:
            self._signal_all(signal.SIGSTOP)  # stopped ones can't fork while we go through the list
            self._signal_all(signal.SIGKILL)
            self._until_alone(0.01)

    def _until_alone(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.alone and (left := deadline - time.monotonic()) > 0:
            self._wait(left, control=False)
            self._reap()

    def _wait(self, seconds: float, *, control: bool) -> None:
        """Until a child's state changes or, with `control`, the parent closes our standard input."""
        ready, _, _ = select.select([self._wake, 0] if control else [self._wake], [], [], seconds)
        if 0 in ready:
            self.stopped = True
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 4096):
                pass

    def _reap(self) -> None:
        try:
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * MAXRSS_UNIT)
                if pid == self.program:
                    self.exit_code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            self.alone = True

    def _signal_all(self, number: int) -> None:
        if self.alone:
            return
        if not LINUX:
            with contextlib.suppress(OSError):
                os.killpg(self.program, number)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def main(parent: int, status_fd: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.set_inheritable(status_fd, False)
    if os.getppid() != parent:
        return
    job = read_job(0)
    if job is None:
        return
    os.setsid()
    supervisor = Supervisor(job, status_fd)
    supervisor.run()
    supervisor.end()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = -signal.SIGKILL if supervisor.exit_code is None else supervisor.exit_code
    os.write(status_fd, b"ended %d %.3f %d\n" % (code, used.ru_utime + used.ru_stime, supervisor.peak_bytes))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    finally:
        os._exit(0)  # nothing of the interpreter is worth tidying up
