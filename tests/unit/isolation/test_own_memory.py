"""The memory of our own processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, sys
from ai_task_orchestra.isolation.own_memory import close_own_memory
close_own_memory()
if os.fork() == 0:
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
    os._exit(0)
os.wait()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a switch of Linux")
def test_it_is_closed_in_a_process_and_in_what_it_forks() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]
