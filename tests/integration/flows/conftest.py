"""A laboratory for compiled templates, in a Prefect of the test process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, PREFECT_HOME, temporary_settings

from tests.support.laboratory import Laboratory


@pytest.fixture
def prefect(prefect_api_url: str, tmp_path: Path) -> Iterator[None]:
    changes = {
        PREFECT_API_URL: prefect_api_url,
        PREFECT_HOME: tmp_path / "prefect",
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
    }
    with temporary_settings(changes):
        yield


@pytest.fixture
async def lab(prefect: None, tmp_path: Path) -> AsyncIterator[Laboratory]:
    async with get_client() as client:
        yield Laboratory(client, tmp_path / "home")
