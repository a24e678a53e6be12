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


_DYING = """
import os, subprocess, sys
from ai_task_orchestra.worker.process_tree import adopt_orphans, children_of, die_with_descendants, sweep_orphans

adopt_orphans()
ours, theirs = os.pipe()
child = os.fork()
if child == 0:
    os.setsid()
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    os.write(theirs, b"%d %d" % tuple(children_of(os.getpid())))
    os.close(theirs)
    die_with_descendants()
os.close(theirs)
below = set(map(int, os.read(ours, 100).split()))
assert len(below) == 2
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
# They were killed before it died, so nothing comes to us that is still alive.
states = {pid: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] for pid in children_of(os.getpid())}
assert set(states) <= below and set(states.values()) <= {"Z", "X"}, states
sweep_orphans(())
"""


def test_a_process_that_ends_itself_takes_everything_below_along() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _DYING], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_killed_tree_leaves_nothing_once_its_orphans_are_swept() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _PARENT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
