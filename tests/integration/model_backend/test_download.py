"""Getting the real model through pip, as a fresh machine does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import ollama
import pytest

from ai_task_orchestra.model_backend.model_file import FILE_NAME, SHA256
from tests.support.model_backend import model_backend, model_path
from tests.support.waiting import wait_until_sync

FETCH = [sys.executable, "-m", "ai_task_orchestra.model_backend.fetch"]


@pytest.fixture(autouse=True)
def _network() -> None:
    model_path()  # skips where the model can't be had


def test_two_first_starts_at_once_download_the_model_once(tmp_path: Path) -> None:
    both = [subprocess.Popen([*FETCH, "--cache", str(tmp_path), "--json"], stdout=subprocess.PIPE) for _ in range(2)]
    said = [[json.loads(line) for line in child.communicate(timeout=120)[0].splitlines()] for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert [lines[-1] for lines in said] == [{"path": str(tmp_path / FILE_NAME)}] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fetching", FILE_NAME, "digests.json"]
    (entry,) = json.loads((tmp_path / "digests.json").read_text()).values()
    assert entry["sha256"] == SHA256


def test_pull_brings_the_model_to_an_empty_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with model_backend("--ctx", "256", models=()) as backend:
        assert httpx.get(f"{backend.url}/api/tags").json() == {"models": []}
        client = ollama.Client(host=backend.url, timeout=120)
        steps = list(client.pull("smollm2:135m", stream=True))
        assert steps[-1].status == "success"
        assert all(step.total for step in steps if step.status == f"pulling {SHA256[:12]}")
        assert client.generate("smollm2:135m", "hi", options={"num_predict": 1}).done
        client._client.close()


def test_a_pull_that_is_given_up_leaves_no_download_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with model_backend("--ctx", "256", models=()) as backend:
        with httpx.stream("POST", f"{backend.url}/api/pull", json={"model": "smollm2:135m"}, timeout=60) as answer:
            next(line for line in answer.iter_lines() if "total" in line)  # it is under way
        wait_until_sync(lambda: not backend.runners(), timeout=5, description="no child left")
    cache = tmp_path / "ai-task-orchestra" / "models"
    assert [path.name for path in cache.iterdir() if path.name != ".fetching"] == []
