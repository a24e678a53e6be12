"""The work of a step: writes into the history that it began and how it ended.

    recorder.py HISTORY STEP ok|fail|flaky|family for=SECONDS

Run with the standard library only, so that it starts in milliseconds. Its HOME lies in the workspace of its attempt,
`.../workspaces/<task id>/<attempt>/`, which tells whose work it is. `flaky` fails unless an earlier attempt of the
same task has failed; `family` starts a child, a session and a daemon, none of which ends by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

FAILED = 3
_STUBBORN_SECONDS = 600


def line_of(kind: str, task: str, attempt: int, step: str) -> bytes:
    """One line of the history. `kind` and `task` come first: `flaky` looks for them as text."""
    fields = {"kind": kind, "task": task, "attempt": attempt, "step": step, "pid": os.getpid(), "at": time.time()}
    return json.dumps(fields).encode() + b"\n"


class History:
    """The history as one attempt's step writes it."""

    def __init__(self, path: str, step: str) -> None:
        workspace = os.path.dirname(os.environ["HOME"])  # noqa: PTH120
        self.path, self.step = path, step
        self.attempt = int(os.path.basename(workspace))  # noqa: PTH119
        self.task = os.path.basename(os.path.dirname(workspace))  # noqa: PTH119, PTH120

    def write(self, kind: str) -> None:
        """Append a line, on the disk when this returns."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line_of(kind, self.task, self.attempt, self.step))
            os.fsync(file)
        finally:
            os.close(file)

    def has_failed_before(self) -> bool:
        """Whether an attempt of this task has failed."""
        with open(self.path, "rb") as file:  # noqa: PTH123
            return f'{{"kind": "fail", "task": "{self.task}"'.encode() in file.read()


def start_family(history: History) -> None:
    """A child, a session and a daemon; each says who it is."""
    for kind in ("child", "session", "daemon"):
        if os.fork() == 0:
            _become(kind)
            history.write("below")
            time.sleep(_STUBBORN_SECONDS)
            os._exit(0)


def _become(kind: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind != "child":
        os.setsid()
    if kind == "daemon" and os.fork():
        os._exit(0)


def main(path: str, step: str, mode: str, duration: str) -> int:
    """The step's exit code."""
    history = History(path, step)
    history.write("start")
    if mode == "family":
        start_family(history)
    time.sleep(float(duration.partition("=")[2]))
    if mode == "fail" or (mode == "flaky" and not history.has_failed_before()):
        history.write("fail")
        return FAILED
    history.write("end")
    print(f"{history.task}:{history.attempt}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
