"""One real backend for the protocol tests of a module; each test gets it with no model loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import ollama
import pytest

from tests.support.model_backend import ModelBackend, model_backend
from tests.support.waiting import wait_until

MODEL = "smollm2:135m"


@pytest.fixture(scope="module")
def backend() -> Iterator[ModelBackend]:
    with model_backend("--ctx", "256", "--threads", "1") as running:
        yield running


@pytest.fixture
async def client(backend: ModelBackend) -> AsyncIterator[ollama.AsyncClient]:
    """The official client, with time limits of its own."""
    client = ollama.AsyncClient(host=backend.url, timeout=60)
    yield client
    await client._client.aclose()


@pytest.fixture
async def cold(client: ollama.AsyncClient) -> ollama.AsyncClient:
    """The client of a backend that has no model in memory."""
    await client.generate(MODEL, keep_alive=0)

    async def empty() -> bool:
        return not (await client.ps()).models

    await wait_until(empty, description="no model loaded")
    return client
