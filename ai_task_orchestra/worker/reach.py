"""Tells a Prefect that is down from a machine that is cut off."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}


async def is_reachable(url: str, timeout_seconds: float) -> bool:
    """Whether the machine of `url` answers at all: it accepts a connection, or refuses it.

    If it does and the server behind it does not, the server is down or overloaded, and for everybody.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or _PORTS.get(parts.scheme))
    except ConnectionError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True
