from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ai_task_orchestra.cli import main
from tests.unit.cli.fake_api import KEY, FakeApi, fake_api


@dataclass
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as served:
        yield served


@pytest.fixture
def orchestra(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs the command line in this process, against the fake API."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRA_URL", api.url)
    monkeypatch.setenv("ORCHESTRA_API_KEY", KEY)

    def run(*arguments: str) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["orchestra", *arguments])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        return Outcome(0 if code is None else int(code), out.getvalue(), err.getvalue())

    return run
