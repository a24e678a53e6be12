"""Runs one program and makes sure that nothing of it is left: a small process between ours and the program.

Started by `flows.clients.processes` as `main(PARENT_PID, STATUS_FD)` with the standard library and this package only,
so that it costs milliseconds. It adopts every descendant of the program whose own parent ends (Linux), daemons with a
session of their own included; whatever it adopts belongs to this one program, so programs that run side by side never
hit each other. The order:

    1. tie our life to the parent's, become the adopter of orphans
    2. read the job from standard input (see `read_job`)
    3. where namespaces are wanted: a second process, the first in there, does the rest; this one waits for it
    4. fork: the child gets a session of its own, dies with us, is put into its jail, and becomes the program
    5. until it ends, or standard input closes (the parent stops us, or is dead): reap, and watch what it uses
    6. SIGTERM to all that is left, a moment later SIGKILL, until no child is left
    7. write one line to STATUS_FD: `ended EXIT_CODE CPU_SECONDS PEAK_RSS_BYTES`

Other lines may stand before that: `start ERRNO` or `jail ERRNO WHAT` if the program could not be started, `limit NAME`
if it reached a limit.
"""

from __future__ import annotations

import errno
import marshal
import os
import resource
import select
import signal
import time

from ai_task_orchestra.isolation.jail import Jail, enter_namespaces
from ai_task_orchestra.isolation.kernel import (
    LINUX,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    prctl,
)
from ai_task_orchestra.isolation.limits import Watch, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FIRST_SAMPLE_SECONDS = 0.02
LONGEST_SAMPLE_SECONDS = 0.25
SAMPLE_SHARE = 0.05  # of our time at most goes into looking at a large tree
KILL_SECONDS = 5.0  # a process in the kernel's own sleep can't be killed: give up on it then
EXIT_NOT_STARTED = 127
MAXRSS_UNIT = 1024 if LINUX else 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESET_SIGNALS = ("SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGXFSZ", "SIGUSR1", "SIGUSR2")


class Job:
    """What to run, and the jail it is put into."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.argv: list[bytes] = given["argv"]
        self.env: dict[bytes, bytes] = given["env"]
        self.cwd: bytes = given["cwd"]
        self.grace_seconds: float = given["grace_seconds"]
        self.jail = Jail(given["jail"])


def read_job(fd: int) -> Job | None:
    """A line with the number of bytes, then a dictionary as `marshal` writes it. None: the parent went away first."""
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
    return Job(marshal.loads(b"".join(parts)))  # noqa: S302 - written by our own parent


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
        os.umask(0o077)
        os.chdir(job.cwd)
        failed = b"jail"
        job.jail.close()
        failed = b"start"
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # last of all: a change of account would clear it
        if os.getppid() != us:
            os._exit(EXIT_NOT_STARTED)
        become(job)
    except OSError as exc:
        tell(status_fd, failed, exc)
    except Exception as exc:
        tell(status_fd, b"jail", OSError(0, repr(exc)))
    finally:
        os._exit(EXIT_NOT_STARTED)


def become(job: Job) -> None:
    """Replace this process by the program. `os.execvpe` would do the same, but import a module, which we may no longer.

    Raises:
        OSError: it can't be found or run.
    """
    program, reason = job.argv[0], OSError(errno.ENOENT, "not found")
    folders = [b""] if b"/" in program else [folder + b"/" for folder in job.env.get(b"PATH", b"").split(b":")]
    for folder in folders:
        try:
            os.execve(folder + program, job.argv, job.env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            reason = exc
    raise reason


def tell(status_fd: int, failed: bytes, exc: OSError) -> None:
    """One line about what could not be done."""
    what = (exc.strerror or "").encode() if failed == b"jail" else b""
    os.write(status_fd, b"%s %d %s\n" % (failed, exc.errno or 0, what))


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
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    except OSError:
        pass
    return found


def _lists_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _scan() -> dict[int, list[int]]:
    """Parents and their children from every process's own data, for kernels that do not list children."""
    children: dict[int, list[int]] = {}
    if LINUX:
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                parent = int(read(f"/proc/{name}/stat").rpartition(b")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    return children


class Supervisor:
    """One program and everything below it."""

    def __init__(self, job: Job, status_fd: int) -> None:
        self.grace_seconds = job.grace_seconds
        self.exit_code: int | None = None
        self.limit: str | None = None  # the one that it has reached
        self.alone = False  # no child left
        self.stopped = False
        self.watch = Watch(job.jail.limits, job.jail.workspace)
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
        """Until the program ends, reaches a limit, or the parent wants no more of it."""
        interval = FIRST_SAMPLE_SECONDS
        while self.exit_code is None and not self.stopped:
            self._wait(interval, control=True)
            self._reap()
            if self.exit_code is not None:
                self.limit = self.watch.reached_at_the_end(self.exit_code)
                return
            began = time.monotonic()
            self.limit = self.watch.look(descendants(os.getpid()))
            if self.limit is not None:
                return
            took = time.monotonic() - began
            interval = max(min(interval * 1.5, LONGEST_SAMPLE_SECONDS), took / SAMPLE_SHARE)

    def end(self) -> None:
        """End all that is left: asked first, then killed. What has reached a limit is not asked."""
        self._reap()
        if self.limit is None or self.exit_code is not None:
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
        try:
            while os.read(self._wake, 4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        try:
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.watch.peak_bytes = max(self.watch.peak_bytes, usage.ru_maxrss * MAXRSS_UNIT)
                if pid == self.program:
                    self.exit_code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            self.alone = True

    def _signal_all(self, number: int) -> None:
        if self.alone:
            return
        if not LINUX:
            _send(os.killpg, self.program, number)
        for pid in descendants(os.getpid()):
            _send(os.kill, pid, number)


def _send(how: Callable[[int, int], None], whom: int, number: int) -> None:
    try:
        how(whom, number)
    except OSError:
        pass


def supervise(job: Job, status_fd: int) -> None:
    """Steps 4 to 7. Our memory is closed to the program, which may run under our account."""
    prctl(PR_SET_DUMPABLE, 0)
    supervisor = Supervisor(job, status_fd)
    supervisor.run()
    supervisor.end()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = -signal.SIGKILL if supervisor.exit_code is None else supervisor.exit_code
    if supervisor.limit is not None:
        os.write(status_fd, b"limit %s\n" % supervisor.limit.encode())
    cpu, peak = used.ru_utime + used.ru_stime, supervisor.watch.peak_bytes
    os.write(status_fd, b"ended %d %.3f %d\n" % (code, cpu, peak))


def _in_namespaces(job: Job, status_fd: int) -> None:
    """Step 3. Signals are the business of the process in there, which hears of the parent's end by its input."""
    try:
        first = enter_namespaces(job.jail)
        if first == 0:
            job.jail.enter()
    except OSError as exc:
        tell(status_fd, b"jail", exc)
        return
    if first == 0:
        supervise(job, status_fd)
        return
    prctl(PR_SET_DUMPABLE, 0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.close(0)
    os.waitpid(first, 0)


def main(parent: int, status_fd: int) -> None:
    """All of it; never returns."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        os.set_inheritable(status_fd, False)
        job = read_job(0) if os.getppid() == parent else None
        if job is None:
            return
        os.setsid()
        if job.jail.account is not None:
            for output in (1, 2):  # so that the program may open /dev/stdout and /dev/stderr
                os.fchown(output, *job.jail.account)
        if job.jail.level >= 2:
            _in_namespaces(job, status_fd)
        else:
            supervise(job, status_fd)
    finally:
        os._exit(0)  # nothing of the interpreter is worth tidying up
