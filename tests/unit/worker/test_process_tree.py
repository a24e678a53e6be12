"""What escapes from a process tree is found; in processes of their own, since pytest has children too."""

from __future__ import annotations

import subprocess
import sys

_PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from ai_task_orchestra.worker.process_tree import adopt_orphans, children_of, kill_tree, sweep_orphans

adopt_orphans()
mine = subprocess.Popen(["sleep", "600"])
# A child with a child in a session of its own, and a daemon whose parents are gone.
tree = subprocess.Popen([sys.executable, "-S", "-c", '''
import os, subprocess, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(600)
    os._exit(0)
os.wait()
print("there", flush=True)
time.sleep(600)
'''], stdout=subprocess.PIPE, start_new_session=True)
assert tree.stdout.readline() == b"there\\n"
daemon, = set(children_of(os.getpid())) - {mine.pid, tree.pid}
session, = children_of(tree.pid)
assert kill_tree(tree.pid) == {tree.pid, session}
tree.wait()
assert sweep_orphans([mine.pid]) == 2
assert children_of(os.getpid()) == [mine.pid]
assert not Path(f"/proc/{daemon}").exists() and not Path(f"/proc/{session}").exists()
mine.kill()
"""


def test_a_killed_tree_leaves_nothing_once_its_orphans_are_swept() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _PARENT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
