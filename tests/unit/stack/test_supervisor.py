"""The supervisor with small scripted children."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from ai_task_orchestra.stack.child import Backoff, StartError
from ai_task_orchestra.stack.supervisor import Supervisor
from tests.support.waiting import wait_until
from tests.unit.stack.scripted import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def supervisor(tmp_path: Path, said: list[str]) -> AsyncIterator[Supervisor]:
    (tmp_path / "logs").mkdir()
    supervisor = Supervisor(tmp_path / "logs", said.append, backoff=Backoff(first_seconds=0.05, most_seconds=0.2))
    yield supervisor
    now = asyncio.Event()
    now.set()
    await supervisor.stop(now)


async def test_children_start_in_order_and_stop_in_reverse(supervisor: Supervisor, journal: Journal) -> None:
    for name in ("one", "two", "three"):
        await supervisor.start(journal.child(name))
    pids = supervisor.pids()
    await supervisor.stop(asyncio.Event())

    assert journal.lines == ["one ready", "two ready", "three ready", "three stopped", "two stopped", "one stopped"]
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


async def test_rank_decides_the_order_of_stopping(supervisor: Supervisor, journal: Journal) -> None:
    await supervisor.start(journal.child("worker", rank=3))
    await supervisor.start(journal.child("model", rank=1))
    await supervisor.stop(asyncio.Event())
    assert journal.lines[-2:] == ["worker stopped", "model stopped"]


async def test_a_child_that_was_killed_is_started_again_and_people_are_told(
    supervisor: Supervisor, journal: Journal, said: list[str]
) -> None:
    await supervisor.start(journal.child("api"))
    first = supervisor.pids()["api"]
    os.kill(first, signal.SIGKILL)

    second = await wait_until(lambda: supervisor.pids().get("api", first) != first and supervisor.pids()["api"])
    await wait_until(lambda: journal.lines.count("api ready") == 2)
    await wait_until(lambda: len(said) == 2)
    assert second != first
    assert said[0].startswith("api was ended by SIGKILL; starting it again in 0.05 s")
    assert said[1] == "api is back"


async def test_restarts_of_a_child_that_keeps_ending_wait_longer_and_longer(
    supervisor: Supervisor, journal: Journal, said: list[str]
) -> None:
    async def ready(started_at: float) -> bool:
        return "sick ready" in journal.lines

    path = journal.path
    spec = journal.child("sick", "exit3", ready=ready)
    path.write_text("sick ready\n")  # it counts as ready at once, and ends right afterwards
    await supervisor.start(spec)
    await wait_until(lambda: len([line for line in said if "starting it again" in line]) >= 4)

    delays = [line.split(" in ")[1].split(" s ")[0] for line in said if "starting it again" in line]
    assert delays[:4] == ["0.05", "0.1", "0.2", "0.2"]
    assert "sick ended with code 3" in said[0]


def test_a_child_that_lived_for_a_minute_is_started_again_soon() -> None:
    backoff = Backoff()
    delay: float | None = None
    delays = [delay := backoff.next(delay, lived=1.0) for _ in range(8)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.next(30.0, lived=59.9) == 30.0
    assert backoff.next(30.0, lived=60.0) == 0.5


async def test_a_child_that_ends_before_it_is_ready_is_an_error_with_its_last_words(
    supervisor: Supervisor, journal: Journal
) -> None:
    async def never(started_at: float) -> bool:
        return False

    with pytest.raises(StartError, match="broken ended with code 4") as caught:
        await supervisor.start(journal.child("broken", "exit4", ready=never))
    assert "these are my last words" in caught.value.message
    assert "hush" not in caught.value.message


async def test_a_child_that_is_never_ready_is_an_error_and_can_be_stopped(
    supervisor: Supervisor, journal: Journal
) -> None:
    async def never(started_at: float) -> bool:
        return False

    with pytest.raises(StartError, match=r"not ready within 0\.2 s"):
        await supervisor.start(journal.child("slow", ready=never, ready_seconds=0.2))
    assert "slow" in supervisor.pids()
    await supervisor.stop(asyncio.Event())
    assert supervisor.pids() == {}


async def test_a_program_that_does_not_exist_is_named(supervisor: Supervisor, journal: Journal) -> None:
    spec = journal.child("ghost")
    ghost = type(spec)("ghost", ["/no/such/program"], spec.environment, ready=spec.ready)
    with pytest.raises(StartError, match="/no/such/program: No such file"):
        await supervisor.start(ghost)


async def test_a_program_that_does_one_thing_is_awaited(supervisor: Supervisor, journal: Journal) -> None:
    await supervisor.run(journal.child("migration", "exit0"))
    assert journal.lines == ["migration ready"]
    with pytest.raises(StartError, match="migration ended with code 2"):
        await supervisor.run(journal.child("migration", "exit2"))


async def test_a_child_that_ignores_the_signal_is_killed_when_its_time_is_over(
    supervisor: Supervisor, journal: Journal
) -> None:
    await supervisor.start(journal.child("stubborn", "stubborn", stop_seconds=0.3))
    pid = supervisor.pids()["stubborn"]
    begun = time.monotonic()
    await supervisor.stop(asyncio.Event())
    assert 0.3 <= time.monotonic() - begun < 3
    assert "stubborn ignored" in journal.lines
    assert not psutil.pid_exists(pid)


async def test_the_last_child_may_take_the_time_that_the_others_left(supervisor: Supervisor, journal: Journal) -> None:
    await supervisor.start(journal.child("database", "stubborn", stop_seconds=0.05))
    await supervisor.start(journal.child("quick"))
    begun = time.monotonic()
    await supervisor.stop(asyncio.Event(), within_seconds=0.8)
    assert 0.8 <= time.monotonic() - begun < 4


async def test_now_kills_without_waiting(supervisor: Supervisor, journal: Journal) -> None:
    await supervisor.start(journal.child("first", "stubborn", stop_seconds=60))
    await supervisor.start(journal.child("second", "stubborn", stop_seconds=60))
    pids = supervisor.pids()
    now = asyncio.Event()
    stopping = asyncio.create_task(supervisor.stop(now))
    await wait_until(lambda: "second ignored" in journal.lines)
    assert not stopping.done()

    now.set()
    await asyncio.wait_for(stopping, 5)
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


async def test_a_stopped_child_leaves_no_child_of_its_own(supervisor: Supervisor, journal: Journal) -> None:
    spec = journal.child("parent")
    code = (
        "import subprocess, sys, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "open(sys.argv[1], 'a').write(f'parent ready\\n{inner.pid}\\n')\n"
        "time.sleep(60)\n"
    )
    argv = [spec.argv[0], "-c", code, str(journal.path)]
    await supervisor.start(type(spec)("parent", argv, spec.environment, ready=spec.ready))
    inner = psutil.Process(int(journal.lines[1]))
    await supervisor.stop(asyncio.Event())
    _, left = psutil.wait_procs([inner], timeout=5)
    assert not left


async def test_children_read_no_terminal_and_have_sessions_of_their_own(
    supervisor: Supervisor, journal: Journal
) -> None:
    await supervisor.start(journal.child("one"))
    pid = supervisor.pids()["one"]
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull  # noqa: PTH115 (tests await nothing here)


async def test_a_child_gets_only_the_environment_it_is_given(
    supervisor: Supervisor, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hush")
    await supervisor.start(journal.child("one"))
    names = psutil.Process(supervisor.pids()["one"]).environ().keys()
    assert names <= {"PATH", "LC_CTYPE"}
