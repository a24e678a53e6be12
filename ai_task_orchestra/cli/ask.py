"""One question to the REST API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ai_task_orchestra.client import OrchestraClient

T = TypeVar("T")


def ask(question: Callable[[OrchestraClient], Awaitable[T]]) -> T:
    """Put a question to the API that the settings name."""
    import asyncio

    from ai_task_orchestra.client import OrchestraClient
    from ai_task_orchestra.settings import load_settings
    from ai_task_orchestra.stack.home import read_api_key

    settings = load_settings()

    async def run() -> T:
        async with OrchestraClient(settings.api_url, read_api_key(settings)) as client:
            return await question(client)

    return asyncio.run(run())
