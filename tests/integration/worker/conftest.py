from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.worker_bench import WorkerBench, open_bench


@pytest.fixture
async def bench(prefect_api_url: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """A fresh work pool, for tests that need a worker of their own."""
    async with open_bench(prefect_api_url, tmp_path) as bench:
        yield bench


@pytest.fixture(scope="module")
def served_pool(prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A work pool with a worker called "tester", shared by the tests of a module."""
    folder = tmp_path_factory.mktemp("served")

    async def prepared() -> WorkerBench:
        async with open_bench(prefect_api_url, folder) as bench:
            return bench

    bench = asyncio.run(prepared())
    with bench.worker(worker_name="tester"):
        yield bench.pool


@pytest.fixture
async def served(prefect_api_url: str, served_pool: str, tmp_path: Path) -> AsyncIterator[WorkerBench]:
    """The pool that the shared worker serves."""
    async with open_bench(prefect_api_url, tmp_path, served_pool) as bench:
        yield bench
