"""A child ends with its parent, by either means alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_until_sync

# A parent that starts a child with a lifeline, says the child's id and waits.
PARENT = """
import subprocess, sys, os, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdin=subprocess.PIPE,
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
BOTH = "end_with_parent(int(sys.argv[1]), sys.stdin.buffer)"
PIPE_ONLY = f"sys.platform = 'other'; {BOTH}"
SIGNAL_ONLY = "end_with_parent(int(sys.argv[1]), os.fdopen(os.pipe()[0], 'rb'))"
GROUP = (
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "end_with_parent(int(sys.argv[1]), sys.stdin.buffer, whole_group=True)"
)


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize(
    "means",
    [
        BOTH,
        PIPE_ONLY,
        pytest.param(SIGNAL_ONLY, marks=pytest.mark.skipif(sys.platform != "linux", reason="a Linux means")),
        GROUP,
    ],
)
def test_a_killed_parent_takes_its_child_along(means: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        "import os, subprocess, sys, time, pathlib\n"
        "from ai_task_orchestra.model_backend.lifeline import end_with_parent\n"
        f"{means}\n"
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", PARENT, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until_sync(ready.exists, description="child armed")
    family = [child.pid, *(process.pid for process in child.children())]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until_sync(lambda: all(gone(pid) for pid in family), timeout=10, description="family gone")


def test_a_child_whose_parent_is_already_gone_does_not_start() -> None:
    script = (
        "import sys; from ai_task_orchestra.model_backend.lifeline import end_with_parent\n"
        "end_with_parent(1_999_999_999, sys.stdin.buffer); print('alive')"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.read() == b""
    assert child.wait(30) == 0
    child.stdin.close()
    child.stdout.close()
