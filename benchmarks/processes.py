"""Programs that a benchmark starts, and what they use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICK = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(
    argv: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path, stop_seconds: float = 20.0
) -> Iterator[subprocess.Popen[bytes]]:
    """A program with its output in `log`; stopped by SIGTERM at the end, killed with all below it if it stays."""
    with log.open("ab") as output:
        child = subprocess.Popen(argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield child
    finally:
        members = tree(child.pid)
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(stop_seconds)
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.kill()
        child.wait()


def clean_environment(**more: str) -> dict[str, str]:
    """Our environment without any setting of Prefect, Ollama or this project."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ORCHESTRA_", "OLLAMA_"))}
    return kept | {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | more


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything below it that lives."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


@dataclass(frozen=True)
class Usage:
    """What some processes have used since they began, and occupy now.

    `cpu_seconds` includes what their ended children used; `pss_mb` counts memory that several share only once.
    """

    cpu_seconds: float = 0.0
    pss_mb: float = 0.0
    processes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_seconds + other.cpu_seconds, self.pss_mb + other.pss_mb, self.processes + other.processes)


def usage_by_role(roots: Iterable[int], role_of: Callable[[psutil.Process, str], str]) -> dict[str, Usage]:
    """The usage of everything below `roots`, added up by role. `role_of` gets a process and its parent's role."""
    found: dict[str, Usage] = {}

    def visit(process: psutil.Process, above: str) -> None:
        with contextlib.suppress(psutil.Error, OSError):
            role = role_of(process, above)
            found[role] = found.get(role, Usage()) + _usage(process.pid)
            for child in process.children():
                visit(child, role)

    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            visit(psutil.Process(root), "")
    return found


def _usage(pid: int) -> Usage:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(each) for each in fields[11:15])  # own and ended children's, user and system
    pss = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                pss = int(line.split()[1])
    return Usage(ticks / _TICK, pss / 1024, 1)
