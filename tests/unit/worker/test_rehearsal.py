import subprocess
import sys

# In a process of its own: a rehearsal must leave a process that can be forked, with one thread.
_REHEARSE = """
import threading
from ai_task_orchestra.worker import parked_child
assert parked_child.prepare()
assert threading.active_count() == 1, threading.enumerate()
"""


def test_a_rehearsal_runs_a_flow_without_a_server_shows_nothing_and_starts_no_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _REHEARSE],
        env={
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
