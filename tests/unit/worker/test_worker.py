from __future__ import annotations

import pytest
from prefect.workers.base import BaseWorker

from ai_task_orchestra.settings import load_settings
from ai_task_orchestra.worker import OrchestraWorker


def test_prefect_finds_our_worker_type() -> None:
    assert BaseWorker.get_worker_class_from_type("orchestra") is OrchestraWorker


def test_children_get_the_workers_environment_without_other_processes_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRA_API_KEY", "ato_secret")
    monkeypatch.setenv("ORCHESTRA_DATABASE_URL", "postgresql://user:secret@localhost/orchestra")
    monkeypatch.setenv("OLLAMA_HOST", "gpu.test:11434")
    worker = OrchestraWorker("a-pool", name="gpu 1", settings=load_settings())
    environment = worker._child_environment(csrf=False)
    assert "secret" not in str(environment)
    assert environment["OLLAMA_HOST"] == "gpu.test:11434"
    assert environment["ORCHESTRA_WORKER_NAME"] == "gpu 1"
    assert environment["PREFECT_CLIENT_CSRF_SUPPORT_ENABLED"] == "False"


def test_the_limit_of_the_command_line_wins_over_the_setting() -> None:
    settings = load_settings(worker_limit=3)
    assert OrchestraWorker("a-pool", settings=settings).slots == 3
    assert OrchestraWorker("a-pool", settings=settings, limit=1).slots == 1
