"""The embedded model backend as a real process, for any suite that needs a small real model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from ai_task_orchestra.errors import UnreachableError
from ai_task_orchestra.model_backend.model_file import MODEL_NAME, ensure_model
from tests.support.servers import process
from tests.support.waiting import wait_until_sync


@dataclass(frozen=True)
class ModelBackend:
    """A backend that answers at `url`."""

    url: str
    pid: int
    log: Path

    def runners(self) -> list[psutil.Process]:
        """The processes of its loaded models."""
        return psutil.Process(self.pid).children(recursive=True)


def model_path() -> Path:
    """The small model's file, downloaded once per machine.

    Where it can't be had the test is skipped, but never on CI: a skip must not hide there.
    """
    if find_spec("xllamacpp") is None:
        return _missing("xllamacpp is not installed")
    try:
        return ensure_model()
    except UnreachableError as exc:
        return _missing(exc.message)


@contextlib.contextmanager
def model_backend(*flags: str, models: Sequence[str] = (MODEL_NAME,)) -> Iterator[ModelBackend]:
    """A backend on a free port that serves the small model under each of the names `models`."""
    file = model_path() if models else None
    argv = [sys.executable, "-m", "ai_task_orchestra.model_backend", "--port", "0", *flags]
    argv += [f"--model={name}={file}" for name in models] or ["--no-model"]
    with tempfile.TemporaryDirectory(prefix="orchestra-test-") as name:
        log = Path(name) / "model-backend.log"
        with process(argv, log=log, stop=signal.SIGTERM) as child:
            url = wait_until_sync(
                lambda: _listening(log) or child.poll() is not None, timeout=60, description="model backend listening"
            )
            assert isinstance(url, str), log.read_text()
            yield ModelBackend(url, child.pid, log)


def _listening(log: Path) -> str | None:
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("event") == "listening":
                return str(entry["url"])
    return None


def _missing(reason: str) -> Path:
    if os.environ.get("CI"):
        raise AssertionError(reason)
    pytest.skip(reason)
