"""The REST API over its in-memory core, as a client sees it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from ai_task_orchestra.settings import Settings
from api.main import create_app
from tests.support.task_double import DoubleCore, EmptyAudit, InMemoryTasks

KEY = "operator-key-for-tests"
INFERENCE = {"model": "llama3.1:8b", "prompt": "Explain quantum computing in simple terms"}

TEMPLATES = {
    "ollama-inference.yaml": """
name: ollama-inference
description: Run inference with specified model and prompt
parameters:
  - {name: model, type: string, required: true, description: Ollama model name}
  - {name: prompt, type: string, required: true, description: Prompt for the model}
  - {name: system_prompt, type: string, required: false, description: Optional system prompt}
steps:
  - type: ollama_generate
    model: "{{model}}"
    prompt: "{{prompt}}"
    system: "{{system_prompt}}"
""",
    "every-type.yaml": """
name: every-type
description: One parameter of each type
parameters:
  - {name: seconds, type: number, required: true, description: How long}
  - {name: count, type: integer, required: false, description: A count}
  - {name: flag, type: boolean, required: false, description: Yes or no}
  - {name: items, type: array, required: false, description: Some things}
  - {name: options, type: object, required: false, description: Named things}
steps:
  - type: wait
    seconds: "{{seconds}}"
""",
}
BROKEN_TEMPLATE = "name: broken\nsteps:\n  - type: no_such_step\n"


@dataclass(frozen=True)
class ApiUnderTest:
    """A running application, its core's double, and a client that has the operator's key."""

    app: FastAPI
    core: DoubleCore
    client: httpx.AsyncClient
    templates_dir: Path

    @property
    def tasks(self) -> InMemoryTasks:
        return self.core.service

    async def submit(self, **fields: Any) -> dict[str, Any]:
        """Create an `ollama-inference` task; `fields` replace those of the request."""
        body = {"template": "ollama-inference", "parameters": INFERENCE} | fields
        answer = await self.client.post("/api/v1/tasks", json=body)
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def raw(self, body: bytes, path: str = "/api/v1/tasks", **headers: str) -> httpx.Response:
        """Send exactly these bytes as JSON."""
        return await self.client.post(path, content=body, headers={"content-type": "application/json"} | headers)

    async def still_serves(self) -> None:
        """The suite-wide rule: whatever was sent before, the list of tasks can be read."""
        answer = await self.client.get("/api/v1/tasks")
        assert answer.status_code == 200, answer.text


def write_templates(folder: Path) -> Path:
    """The templates above as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in TEMPLATES.items():
        (folder / name).write_text(text)
    return folder


def settings_for(home: Path, **overrides: Any) -> Settings:
    """Settings that read nothing of the machine's own."""
    values: dict[str, Any] = {
        "home": home,
        "templates_dir": write_templates(home / "templates"),
        "api_key": KEY,
    } | overrides
    return Settings(_env_file=None, **values)


class BuiltApp:
    """An application built once, with a core of its own each time it runs: building takes longer than most tests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.core = DoubleCore()
        self.app = create_app(
            settings, core_factory=self._open_core, stores=(lambda keys: keys, lambda _: EmptyAudit())
        )

    def _open_core(self, *given: Any) -> Any:
        return self.core.open(*given)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ApiUnderTest]:
        """The application with its lifespan entered, and empty."""
        self.core = DoubleCore()
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(transport=transport, base_url="http://api.test", headers={"X-API-Key": KEY}) as client,
        ):
            yield ApiUnderTest(self.app, self.core, client, self.settings.templates_dir)


@contextlib.asynccontextmanager
async def running_api(home: Path, **overrides: Any) -> AsyncIterator[ApiUnderTest]:
    """An application of its own; `overrides` are settings."""
    async with BuiltApp(settings_for(home, **overrides)).running() as api:
        yield api


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error answer, whose shape is checked on the way."""
    body = answer.json()
    assert body.keys() <= {"detail", "code", "errors"}, body
    assert isinstance(body["detail"], str) and body["detail"], body
    assert answer.headers["x-request-id"]
    return answer.status_code, body["code"]
