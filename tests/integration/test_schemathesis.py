"""Requests made from the OpenAPI document, valid and broken: no 5xx, no answer that the document does not describe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from tests.support.api_app import INFERENCE, KEY, BuiltApp, settings_for
from tests.support.served_api import api_environment, running, served

EXAMPLES = 8
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
HEADERS = {"X-API-Key": KEY}
CONFIG = {"cache": {"enabled": False}}
#: A template or a dependency that does not exist, and parameters that do not fit, are valid by the document.
MEANT_FOR_PEOPLE = [positive_data_acceptance]


@contextlib.contextmanager
def in_memory(home: Path) -> Iterator[str]:
    """The API over its in-memory core, which shows the faults of the routes."""
    with served(BuiltApp(settings_for(home)).app) as url:
        yield url


@contextlib.contextmanager
def on_core(home: Path, server: EmbeddedPostgres) -> Iterator[str]:
    """A process of the API with the real core and PostgreSQL, which shows what a database refuses."""
    with running(api_environment(home, server), home / "api.log", "api.serve") as (_, url):
        yield url


@pytest.mark.parametrize("core", ["double", "core"])
@pytest.mark.parametrize("mode", [POSITIVE, NEGATIVE], ids=["valid", "broken"])
def test_every_answer_is_as_the_document_says(
    mode: Any, core: str, tmp_path: Path, postgres_server: EmbeddedPostgres, subtests: pytest.Subtests
) -> None:
    with (
        in_memory(tmp_path) if core == "double" else on_core(tmp_path, postgres_server) as url,
        httpx.Client(base_url=f"{url}/api/v1", headers=HEADERS) as client,
    ):
        for operation in operations(url):
            with subtests.test(operation.label):
                try_operation(operation, mode, known_names(operation, client) if mode is POSITIVE else None)
                assert client.get("/tasks").status_code == 200


def operations(url: str) -> Iterator[Any]:
    """All but health and readiness: nothing can be wrong with their requests, and Prefect is away on purpose."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=SchemathesisConfig.from_dict(CONFIG))
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        if operation.path.startswith("/api/v1/"):
            yield operation


def known_names(operation: Any, client: httpx.Client) -> dict[str, str] | None:
    """Values for the operation's path that exist: made-up ones would never get further than a 404."""
    task = {"template": "ollama-inference", "parameters": INFERENCE}
    created, batch = client.post("/tasks", json=task), client.post("/tasks/batch", json={"tasks": [task]})
    known = {"task_id": created.json()["id"], "batch_id": batch.json()["id"], "template_name": "ollama-inference"}
    return {name: value for name, value in known.items() if f"{{{name}}}" in operation.path} or None


def try_operation(operation: Any, mode: Any, path: dict[str, str] | None) -> None:
    """Send requests for one operation and hold the answers to the document."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode, path_parameters=path).filter(has_only_known_queries))
    def one(case: Any) -> None:
        case.call_and_validate(headers=HEADERS, excluded_checks=MEANT_FOR_PEOPLE)

    one()


def has_only_known_queries(case: Any) -> bool:
    """A query that no operation knows is ignored, as it is on most servers: no reason to refuse a request."""
    return not case.query or set(case.query) <= {query.name for query in case.operation.query}
