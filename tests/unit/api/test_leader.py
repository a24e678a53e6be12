from __future__ import annotations

import asyncio

import pytest

from api.leader import regularly


async def test_a_cancellation_that_a_library_turned_into_a_timeout_ends_the_looking() -> None:
    """As asyncpg does while PostgreSQL is silent."""
    began = asyncio.Event()

    async def look() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError from None

    looking = asyncio.create_task(regularly("test", 0.01, look))
    await began.wait()
    looking.cancel()
    await asyncio.wait({looking}, timeout=10)
    assert looking.cancelled()


async def test_a_failure_is_ridden_out() -> None:
    looks: list[int] = []
    enough = asyncio.Event()

    async def look() -> None:
        looks.append(1)
        if len(looks) > 2:
            enough.set()
        raise [ConnectionResetError(), ValueError()][len(looks) % 2]

    looking = asyncio.create_task(regularly("test", 0.001, look))
    await asyncio.wait_for(enough.wait(), 10)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
