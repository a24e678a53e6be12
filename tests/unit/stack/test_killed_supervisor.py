"""What happens to the children when the supervising process itself is killed, or children leave orphans."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import servers
from tests.support.waiting import wait_until_sync

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="death signals and subreapers are Linux's")

ROOT = Path(__file__).parents[3]

SUPERVISING = """
import asyncio, sys
from pathlib import Path
from ai_task_orchestra.stack.child import Backoff
from ai_task_orchestra.stack.orphans import OrphanSweep
from ai_task_orchestra.stack.signals import StopSignals
from ai_task_orchestra.stack import supervisor
from tests.unit.stack.scripted import Journal

supervisor.HOUSEKEEPING_SECONDS = 0.1

async def main(folder, user):
    journal = Journal(folder / "journal")
    (folder / "logs").mkdir(exist_ok=True)
    with StopSignals() as signals:
        stack = supervisor.Supervisor(folder / "logs", print, sweep=OrphanSweep())
        await stack.start(journal.child("api", "stubborn", stop_seconds=60))
        await stack.start(journal.sleeping("postgresql", user=user or None))
        await stack.start(journal.orphaning("worker"))
        print(*stack.pids().values(), flush=True)
        await signals.asked.wait()
        await stack.stop(signals.now)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


class Supervising:
    """A process with a supervisor and three children; the third leaves an orphan in a session of its own."""

    def __init__(self, folder: Path, user: str = "") -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISING, str(folder), user], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        pids = [int(word) for word in self.process.stdout.readline().split()]
        assert len(pids) == 3
        self.children = [psutil.Process(pid) for pid in pids]

    def orphan(self) -> psutil.Process:
        lines = (self.folder / "journal").read_text().splitlines()
        return psutil.Process(int(next(line for line in lines if line.startswith("orphan ")).split()[1]))


@pytest.fixture
def folder() -> Iterator[Path]:
    with servers.open_folder() as path:
        yield path


@contextlib.contextmanager
def supervised(folder: Path, user: str = "") -> Iterator[Supervising]:
    """A supervising process; whatever a failed test leaves of it is killed."""
    started = Supervising(folder, user)
    try:
        yield started
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started.orphan().kill()
        for one in started.children:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        started.process.kill()
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()


@pytest.fixture
def supervising(folder: Path) -> Iterator[Supervising]:
    with supervised(folder) as started:
        yield started


def test_children_die_with_a_supervisor_that_is_killed(supervising: Supervising) -> None:
    supervising.process.kill()
    supervising.process.wait()
    _, alive = psutil.wait_procs(supervising.children, timeout=5)
    assert not alive


def test_an_orphan_of_a_child_that_died_is_ended_while_the_stack_runs(supervising: Supervising) -> None:
    orphan = supervising.orphan()
    os.kill(supervising.children[2].pid, signal.SIGKILL)
    _, alive = psutil.wait_procs([orphan], timeout=5)
    assert not alive
    assert supervising.process.poll() is None


def test_after_the_first_signal_a_much_later_one_kills_everything(supervising: Supervising) -> None:
    orphan = supervising.orphan()
    supervising.process.send_signal(signal.SIGTERM)
    supervising.process.send_signal(signal.SIGINT)  # at once: the same wish, the stubborn child is waited for
    journal = supervising.folder / "journal"
    wait_until_sync(lambda: "api ignored" in journal.read_text(), description="the stubborn child was asked to stop")

    def gone() -> bool:
        supervising.process.send_signal(signal.SIGTERM)
        return supervising.process.poll() is not None

    assert supervising.process.poll() is None
    wait_until_sync(gone, timeout=6, description="signals that go on for more than 2 s end it")
    assert supervising.process.returncode == 0
    assert not any(one.is_running() for one in [*supervising.children, orphan])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start children under another account")
def test_a_child_under_another_account_dies_with_its_supervisor_too(folder: Path) -> None:
    with supervised(folder, user="nobody") as started:
        wait_until_sync(lambda: started.children[1].name() == "sleep", description="it has become its program")
        assert started.children[1].uids().real == pwd.getpwnam("nobody").pw_uid
        started.process.kill()
        started.process.wait()
        _, alive = psutil.wait_procs(started.children, timeout=5)
        assert not alive
