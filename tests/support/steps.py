"""What the tests of the steps share: a context in temporary folders, processes found by a mark, real repositories."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from ai_task_orchestra.settings import Settings
from flows.fence import Fence
from flows.steps.base import StepContext
from flows.usage import ResourceUsage

TASK_ID = "2f6c1a3e-5b0d-4d57-9f0e-6f2f7f0f8a11"


def step_context(
    home: Path, *, earlier: Mapping[str, Mapping[str, Any]] | None = None, tenant: str = "default", **settings: Any
) -> StepContext:
    """A context whose workspace exists below `home`; nothing of the developer's own settings is in it."""
    configured = Settings(home=home, _env_file=None, **settings)
    workspace = configured.workspaces / TASK_ID / "1"
    workspace.mkdir(parents=True, exist_ok=True)
    return StepContext(
        task_id=TASK_ID,
        tenant=tenant,
        step_name="step",
        workspace=workspace,
        settings=configured,
        earlier=earlier or {},
        timeout_seconds=60.0,
        log=logging.getLogger("tests.steps"),
        usage=ResourceUsage(),
        fence=open_fence(),
    )


def open_fence() -> Fence:
    """The fence of an attempt that nobody disputes."""

    async def is_current() -> bool:
        return True

    return Fence(is_current, 60.0)


def new_mark() -> str:
    """A word to put on a command line, so that the process can be found again."""
    return f"mark-{uuid.uuid4().hex}"


def alive(mark: str) -> list[int]:
    """The processes that have the mark on their command line and have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder as somebody; its output."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "safe.directory=*"]
    argv = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, files: Mapping[str, str]) -> str:
    """A repository with one commit on `main`; its `file://` address."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main")
    commit(folder, files)
    return f"file://{folder}"


def commit(folder: Path, files: Mapping[str, str]) -> str:
    """One more commit; its id."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "files")
    return git(folder, "rev-parse", "HEAD")
