from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.core_bench import CoreBench
from tests.support.site import Site, open_site


@pytest.fixture(scope="module")
def site(prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Templates and a pool for the tests of a module."""
    yield open_site(tmp_path_factory.mktemp("site"), prefect_api_url)


@pytest.fixture
async def bench(site: Site, database_url: str) -> AsyncIterator[CoreBench]:
    """The API's core of this site."""
    async with site.core(database_url) as opened:
        yield opened
