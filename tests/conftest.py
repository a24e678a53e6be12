"""Shared fixtures: real PostgreSQL and a real Prefect server, one of each per test process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from tests.support import servers

for _name in [name for name in os.environ if name.startswith(("PREFECT_", "ORCHESTRA_", "OLLAMA_"))]:
    del os.environ[_name]  # a developer's own settings must not reach the tests

# How long an example takes says nothing on a machine with other work; Hypothesis' own CI profile has no limit either.
settings.register_profile("unhurried", deadline=None)
if not os.environ.get("CI"):
    settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server shared by this test process."""
    with servers.postgres() as server:
        yield server


@pytest.fixture
async def database_url(postgres_server: EmbeddedPostgres) -> str:
    """A fresh, empty database."""
    return await servers.new_database(postgres_server)


@pytest.fixture(scope="session")
def prefect_api_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A Prefect server shared by this test process; tests use work pools of their own."""
    with servers.prefect_server(postgres_server) as url:
        yield url
