"""One bench for each module of fault tests: event loop, proxies and work pool live as long as the module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from api.migrate import upgrade
from tests.support.fault_bench import FaultBench
from tests.support.prefect_bench import PrefectBench
from tests.support.servers import new_database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(
    postgres_server: EmbeddedPostgres, prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[FaultBench]:
    """A fresh database and work pool behind proxies; PostgreSQL and Prefect are shared."""
    url = await new_database(postgres_server)
    await upgrade(url)
    async with httpx.AsyncClient(base_url=prefect_api_url, timeout=60) as http:
        prefect = await PrefectBench.prepare(http)
        async with FaultBench(tmp_path_factory.mktemp("faults"), prefect, url).opened() as opened:
            yield opened


@pytest.fixture(autouse=True)
def sound_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test does to the bench's connections ends with it."""
    yield
    if "bench" in request.fixturenames:
        request.getfixturevalue("bench").heal()
