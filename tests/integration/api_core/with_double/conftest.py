"""The same core on a real PostgreSQL, with Prefect's double: milliseconds, and faults at will."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from api import cancellation, chores, core, dispatcher, hints, leader, priorities
from api.database import plain_url
from api.migrate import upgrade
from tests.support import servers
from tests.support.core_bench import core_settings, write_template
from tests.support.core_world import CoreWorld
from tests.support.prefect_double import PrefectDouble

#: The core's clockwork, many times faster than it is meant to run.
FAST: Final[dict[Any, dict[str, float]]] = {
    core: {"CHORES_SECONDS": 0.06},
    dispatcher: {
        "POLL_SECONDS": 0.1,
        "PAUSE_SECONDS": 0.01,
        "FIRST_BACKOFF_SECONDS": 0.005,
        "LONGEST_BACKOFF_SECONDS": 0.04,
        "LONGEST_WAIT_SECONDS": 0.04,
    },
    priorities: {"PATIENCE_SECONDS": 0.5, "ARRIVAL_SECONDS": 0.2, "_PAUSE_SECONDS": 0.004},
    leader: {"RETRY_SECONDS": 0.02},
    hints: {"SETTLE_SECONDS": 0.001, "RECONNECT_SECONDS": 0.02},
    cancellation: {"FORCE_SECONDS": 0.3},
    chores: {"FORCE_SECONDS": 0.3},
}


@pytest.fixture
def prefect_api_url() -> str:
    return "http://127.0.0.1:9/api"


@pytest.fixture
def prefect() -> PrefectDouble:
    return PrefectDouble()


@pytest.fixture
def make_world(
    postgres_server: EmbeddedPostgres, prefect_api_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], CoreWorld]:
    """Makes worlds, one after another, in one database; for tests that are no coroutines."""

    async def database() -> str:
        url = await servers.new_database(postgres_server)
        await upgrade(url)
        connection = await asyncpg.connect(plain_url(url))
        await connection.execute(f'ALTER DATABASE "{url.rpartition("/")[2]}" SET synchronous_commit = off')
        await connection.close()
        return url

    for module, values in FAST.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    write_template(tmp_path, "work")
    write_template(tmp_path, "retried", retries=2, retry_delay_seconds=0)
    write_template(tmp_path, "once", on_worker_loss="fail")
    settings = core_settings(
        tmp_path,
        asyncio.run(database()),
        prefect_api_url,
        "pool",
        mirror_active_seconds=0.12,
        mirror_full_seconds=0.4,
        adopt_seconds=0.3,
        worker_lease_seconds=0.2,
    )
    return lambda: CoreWorld(settings)
