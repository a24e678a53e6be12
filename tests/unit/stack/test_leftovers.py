"""A PostgreSQL that a killed `up` has left on the data directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_task_orchestra.stack import leftovers
from ai_task_orchestra.stack.child import StartError
from ai_task_orchestra.stack.leftovers import end_former_server

SLEEPING = "import signal, time; signal.signal(signal.SIGINT, {handler}); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process with the data directory in its command line, as a server has it."""
    code = SLEEPING.format(handler=getattr(request, "param", "signal.SIG_DFL"))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    (tmp_path / "postmaster.pid").write_text(f"{process.pid}\n{tmp_path}\n")
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


async def test_it_is_asked_to_shut_down_and_awaited(server: subprocess.Popen[str], tmp_path: Path) -> None:
    await end_former_server(tmp_path)
    assert server.wait(5) == -signal.SIGINT


@pytest.mark.parametrize("server", ["signal.SIG_IGN"], indirect=True)
async def test_one_that_stays_is_named(
    server: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "LEFTOVER_SECONDS", 0.2)
    with pytest.raises(StartError, match=f"process {server.pid}"):
        await end_former_server(tmp_path)


@pytest.mark.parametrize("content", ["", "no number", "999999999\n", f"{os.getpid()}\n"])
async def test_a_stale_file_or_another_process_under_that_number_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "postmaster.pid").write_text(content)
    await end_former_server(tmp_path)
    assert (tmp_path / "postmaster.pid").read_text() == content


async def test_no_server_is_no_work(tmp_path: Path) -> None:
    await end_former_server(tmp_path)
