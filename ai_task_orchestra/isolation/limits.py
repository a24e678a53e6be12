"""What a program and everything below it may use, and who watches over that.

The kernel counts per process (files, sizes, processor time) and, for an account of its own, processes. Memory and disk
are watched for the whole tree: an address space limit would stop programs that only reserve memory, as node and CUDA
do.
"""

from __future__ import annotations

import os
import resource
import stat
import time

from ai_task_orchestra.isolation.kernel import LINUX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MEMORY, PROCESSOR, PROCESSES, DISK, FILES, FULL_DISK = "memory", "cpu", "processes", "disk", "files", "full-disk"

DISK_SECONDS = 0.5
DISK_SHARE = 0.05  # of our time at most goes into looking at a large workspace
DEEPEST = 200  # folders in each other

_SIGXCPU, _SIGXFSZ = 24, 25
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")
# Places in /proc/<pid>/stat, counted from the one after the program's name.
_USER, _SYSTEM, _ENDED_USER, _ENDED_SYSTEM, _THREADS, _RESIDENT = 11, 12, 13, 14, 17, 21


class Limits:
    """Bytes, seconds and numbers; 0 stands for no limit."""

    def __init__(self, given: Mapping[str, float]) -> None:
        self.memory = int(given.get("memory", 0))
        self.cpu = float(given.get("cpu", 0))
        self.processes = int(given.get("processes", 0))
        self.open_files = int(given.get("open_files", 0))
        self.disk = int(given.get("disk", 0))
        self.files = int(given.get("files", 0))
        self.reserve = int(given.get("reserve", 0))

    def apply(self, *, tasks_beside: int) -> None:
        """Have the kernel hold what it can for this process and what it starts.

        `tasks_beside`: what else runs under our account and counts, as the kernel sees it.
        """
        _set(resource.RLIMIT_CORE, 0)
        if self.open_files:
            _set(resource.RLIMIT_NOFILE, self.open_files)
        if self.disk:
            _set(resource.RLIMIT_FSIZE, 2 * self.disk)  # for what is faster than we look
        if self.cpu:
            _set(resource.RLIMIT_CPU, int(self.cpu) + 1)
        if self.processes:
            _set(resource.RLIMIT_NPROC, self.processes + tasks_beside)


def _set(what: int, value: int) -> None:
    """At most `value`; what is set lower already stays."""
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


def tasks_of_account(uid: int) -> int:
    """How many threads run under this account."""
    found = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                lines = read(f"/proc/{name}/status").splitlines()
            except OSError:
                continue
            facts = {label: values.split() for label, _, values in (line.partition(b":") for line in lines)}
            if int(facts[b"Uid"][0]) == uid:
                found += int(facts[b"Threads"][0])
    return found


class Watch:
    """Looks at a program's processes and its workspace; knows the most memory they had, and which limit is reached."""

    def __init__(self, limits: Limits, workspace: str) -> None:
        self.peak_bytes = 0
        self._limits = limits
        self._workspace = workspace
        self._most_tasks = 0
        self._next_disk = 0.0

    def look(self, processes: Sequence[int]) -> str | None:
        """The limit that these processes and the workspace have reached, if any."""
        limits = self._limits
        resident = tasks = ticks = 0
        for pid in processes:
            fields = _stat(pid)
            if fields:
                resident += int(fields[_RESIDENT]) * _PAGE
                tasks += int(fields[_THREADS])
                ticks += sum(int(fields[each]) for each in (_USER, _SYSTEM, _ENDED_USER, _ENDED_SYSTEM))
        self.peak_bytes = max(self.peak_bytes, resident)
        self._most_tasks = max(self._most_tasks, tasks)
        if limits.memory and resident > limits.memory and _proportional(processes, resident) > limits.memory:
            return MEMORY
        if limits.processes and tasks >= limits.processes:
            return PROCESSES
        if limits.cpu and ticks / _TICKS + _used_by_ended() > limits.cpu:
            return PROCESSOR
        if time.monotonic() >= self._next_disk:
            return self.look_at_disk(processes)
        return None

    def look_at_disk(self, processes: Sequence[int] = ()) -> str | None:
        """The same for the workspace alone; `processes` may hold files that have no name any more."""
        limits, began = self._limits, time.monotonic()
        try:
            if limits.reserve and _free_bytes(self._workspace) < limits.reserve:
                return FULL_DISK
            if limits.disk or limits.files:
                size, files = _size_of(self._workspace, limits.files)
                nameless, in_memory = _nameless_bytes(processes)
                if limits.memory and in_memory > limits.memory:
                    return MEMORY
                if limits.disk and size + nameless >= limits.disk:
                    return DISK
                if limits.files and files >= limits.files:
                    return FILES
        except RecursionError:
            return FILES
        finally:
            self._next_disk = time.monotonic() + max(DISK_SECONDS, (time.monotonic() - began) / DISK_SHARE)
        return None

    def reached_at_the_end(self, exit_code: int) -> str | None:
        """The limit that a program reached before anybody looked, or that is why it failed by itself."""
        limits = self._limits
        if exit_code in (-_SIGXCPU, 128 + _SIGXCPU):  # itself, or a child of a shell
            return PROCESSOR
        if exit_code in (-_SIGXFSZ, 128 + _SIGXFSZ):
            return DISK
        if exit_code and limits.processes and self._most_tasks >= limits.processes * 0.9:
            return PROCESSES
        found = self.look_at_disk()
        return None if found == FULL_DISK and exit_code == 0 else found


def _stat(pid: int) -> list[bytes]:
    try:
        return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return []


def read(path: str) -> bytes:
    """A small file of /proc."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def _proportional(processes: Sequence[int], resident: int) -> int:
    """The same with memory that several processes share counted once; the sum as it was where that can't be seen."""
    total = 0
    for pid in processes:
        try:
            lines = read(f"/proc/{pid}/smaps_rollup").splitlines()
        except ProcessLookupError:
            continue
        except OSError:
            return resident
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:"))
    return total


def _used_by_ended() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _free_bytes(folder: str) -> int:
    try:
        state = os.statvfs(folder)
    except OSError:
        return 2**63
    return state.f_bavail * state.f_frsize


def _size_of(top: str, most_names: int) -> tuple[int, int]:
    """Bytes on disk below a folder, and the number of names; counting ends at `most_names`.

    Every folder is opened from the one around it, so nothing leads out, however deep it is or whatever is swapped.

    Raises:
        RecursionError: folders are nested deeper than anybody needs.
    """
    size = names = 0
    seen: set[int] = set()
    open_folders: list[tuple[int, Iterator[os.DirEntry[str]]]] = []
    try:
        fd = _open_folder(top, None)
        while fd is not None or open_folders:
            if fd is not None:
                open_folders.append((fd, os.scandir(fd)))
                fd = None
                if len(open_folders) > DEEPEST:
                    raise RecursionError
            folder, entries = open_folders[-1]
            entry = next(entries, None)
            if entry is None or (most_names and names >= most_names):
                os.close(open_folders.pop()[0])
                continue
            names += 1
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(info.st_mode):
                fd = _open_folder(entry.name, folder)
            elif info.st_nlink < 2 or info.st_ino not in seen:
                size += info.st_blocks * 512
                if info.st_nlink > 1:
                    seen.add(info.st_ino)
    finally:
        for folder, _ in open_folders:
            os.close(folder)
    return size, names


def _open_folder(name: str, parent: int | None) -> int | None:
    """A folder, even one that was closed to its own owner; None if it can't be opened."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        if not LINUX:
            return None
    except OSError:
        return None
    try:
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return None
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError:
        return None
    finally:
        os.close(handle)


def _nameless_bytes(processes: Sequence[int]) -> tuple[int, int]:
    """What these processes hold in files that were removed while they are open: on disk, and in memory alone."""
    found: dict[tuple[int, int], tuple[int, bool]] = {}
    for pid in processes:
        folder = f"/proc/{pid}/fd"
        try:
            numbers = os.listdir(folder)
        except OSError:
            continue
        for number in numbers:
            try:
                info = os.stat(f"{folder}/{number}")
                only_in_memory = os.readlink(f"{folder}/{number}").startswith("/memfd:")
            except OSError:
                continue
            if info.st_nlink == 0 and stat.S_ISREG(info.st_mode):
                found[info.st_dev, info.st_ino] = info.st_blocks * 512, only_in_memory
    in_memory = sum(size for size, only_in_memory in found.values() if only_in_memory)
    return sum(size for size, _ in found.values()) - in_memory, in_memory
