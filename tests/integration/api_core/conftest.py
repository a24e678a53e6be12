"""A core, a database and a work pool for each test; PostgreSQL and Prefect are shared.

The tests right here play against a real Prefect; those in `with_double` against its double.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ai_task_orchestra.settings import Settings
from api.migrate import upgrade
from tests.support.core_bench import CoreBench, core_settings, open_bench, write_template
from tests.support.prefect_bench import PrefectBench
from tests.support.prefect_double import PrefectDouble


@pytest.fixture
async def prefect(prefect_api_url: str) -> AsyncIterator[PrefectBench]:
    """A pool and a deployment of its own in the shared Prefect."""
    async with httpx.AsyncClient(base_url=prefect_api_url, timeout=20) as http:
        yield await PrefectBench.prepare(http)


@pytest.fixture
async def settings(tmp_path: Path, database_url: str, prefect_api_url: str, prefect: PrefectBench) -> Settings:
    """Settings for a core on a migrated database, with the bench's template."""
    await upgrade(database_url)
    write_template(tmp_path, prefect.template)
    return core_settings(tmp_path, database_url, prefect_api_url, prefect.pool)


@pytest.fixture
async def bench(settings: Settings, prefect: PrefectBench) -> AsyncIterator[CoreBench]:
    """An open core."""
    gateway = prefect if isinstance(prefect, PrefectDouble) else None
    async with open_bench(settings, prefect, gateway=gateway) as opened:
        yield opened


@pytest.fixture
def template(tmp_path: Path, prefect: PrefectBench) -> Any:
    """Write another template and deploy it."""

    async def make(name: str, **options: Any) -> str:
        write_template(tmp_path, name, **options)
        await prefect.deploy(name)
        return name

    return make
