"""Small children for the supervisor: each writes what happens to it into one shared file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ai_task_orchestra.stack.child import ChildSpec

CHILD = """
import os, signal, sys, time
name, journal, ending = sys.argv[1:]
def note(word):
    with open(journal, "a") as file:
        file.write(f"{name} {word}\\n")
def ended(*_):
    note("stopped")
    os._exit(0)
if ending == "stubborn":
    signal.signal(signal.SIGTERM, lambda *_: note("ignored"))
else:
    signal.signal(signal.SIGTERM, ended)
note("ready")
if ending.startswith("exit"):
    print("these are my last words", "postgresql://orchestra:hush@127.0.0.1/x", flush=True)
    os._exit(int(ending[4:]))
while True:
    time.sleep(30)
"""


ORPHANING = """
import subprocess, sys, time
name, journal = sys.argv[1:]
inner = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
with open(journal, "a") as file:
    file.write(f"orphan {inner.pid}\\n{name} ready\\n")
time.sleep(60)
"""


class Journal:
    """What the children wrote, oldest first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def child(self, name: str, ending: str = "", **options: Any) -> ChildSpec:
        """A child that is ready when it has written so; `ending`: "", "stubborn" or "exit<code>"."""

        return self._spec(name, CHILD, ending, **options)

    def orphaning(self, name: str) -> ChildSpec:
        """A child with a child of its own in another session, which does not end with it; `orphan <pid>` is written."""
        return self._spec(name, ORPHANING)

    def sleeping(self, name: str, **options: Any) -> ChildSpec:
        """A child that any account may run, and that writes nothing."""
        return ChildSpec(name, ["/bin/sleep", "60"], {"PATH": os.defpath}, **options)

    def _spec(self, name: str, code: str, *arguments: str, **options: Any) -> ChildSpec:
        async def ready(started_at: float) -> bool:
            return f"{name} ready" in self.lines

        options.setdefault("ready", ready)
        argv = [sys.executable, "-I", "-S", "-c", code, name, str(self.path), *arguments]
        return ChildSpec(name, argv, {"PATH": os.defpath}, **options)
