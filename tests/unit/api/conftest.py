from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.api_app import ApiUnderTest, BuiltApp, settings_for


@pytest.fixture(scope="session")
def built_app(tmp_path_factory: pytest.TempPathFactory) -> BuiltApp:
    """One application for all tests of a process that do not change its settings or templates."""
    return BuiltApp(settings_for(tmp_path_factory.mktemp("api")))


@pytest.fixture
async def api(built_app: BuiltApp) -> AsyncIterator[ApiUnderTest]:
    """The API over an empty in-memory core."""
    async with built_app.running() as running:
        yield running
