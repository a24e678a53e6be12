"""The same core on a real PostgreSQL, with Prefect's double: milliseconds, and faults at will."""

from __future__ import annotations

import pytest

from tests.support.prefect_double import PrefectDouble


@pytest.fixture
def prefect_api_url() -> str:
    return "http://127.0.0.1:9/api"


@pytest.fixture
def prefect() -> PrefectDouble:
    return PrefectDouble()
