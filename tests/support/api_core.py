"""The REST API over the real core and a real PostgreSQL, with nobody at Prefect's address unless one is given."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from ai_task_orchestra.settings import Settings
from api.main import create_app
from api.migrate import upgrade
from tests.support.api_app import KEY, settings_for
from tests.support.servers import free_port


async def migrated_settings(home: Path, database_url: str, **overrides: Any) -> Settings:
    """Settings of an API with an up-to-date database of its own."""
    await upgrade(database_url)
    nobody = f"http://127.0.0.1:{free_port()}/api"
    return settings_for(home, **({"database_url": database_url, "prefect_api_url": nobody} | overrides))


@contextlib.asynccontextmanager
async def api_on_core(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client, with the operator's key, of an application with its lifespan entered."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api.test", headers={"X-API-Key": KEY}) as client,
    ):
        yield client
