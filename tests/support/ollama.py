"""What the tests of the model steps share: settings for a scripted server with time-outs of fractions of a second."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ai_task_orchestra.settings import Settings
from ai_task_orchestra.testing.scripted_ollama import ScriptedOllama
from flows.clients.ollama import OllamaClient
from flows.steps.base import StepContext
from flows.usage import ResourceUsage
from tests.support.steps import open_fence

LOG = logging.getLogger("tests.ollama")


def settings_for(server: ScriptedOllama | str, **overrides: Any) -> Settings:
    """Settings whose model server is `server`."""
    url = server if isinstance(server, str) else server.url
    values: dict[str, Any] = {
        "ollama_host": url,
        "connect_timeout_seconds": 2.0,
        "first_token_timeout_seconds": 5.0,
        "token_idle_timeout_seconds": 5.0,
        "home": Path("/nonexistent"),
    }
    return Settings(_env_file=None, **(values | overrides))


def client_for(server: ScriptedOllama | str, *, deadline_seconds: float = 30.0, **overrides: Any) -> OllamaClient:
    """A client of `server`."""
    return OllamaClient(settings_for(server, **overrides), deadline_seconds=deadline_seconds, log=LOG)


def step_context(server: ScriptedOllama | str, workspace: Path, **overrides: Any) -> StepContext:
    """The context of a step of a task that talks to `server`."""
    return StepContext(
        task_id="00000000-0000-4000-8000-000000000001",
        tenant="default",
        step_name="ask",
        workspace=workspace,
        settings=settings_for(server, **({"home": workspace} | overrides)),
        earlier={},
        timeout_seconds=60.0,
        log=LOG,
        usage=ResourceUsage(),
        fence=open_fence(),
    )
