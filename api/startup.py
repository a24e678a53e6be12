"""What must be true before the API listens."""

from __future__ import annotations

from typing import Final

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.settings import Settings
from api.documentation import is_loopback
from api.key_ring import KeyRing

#: The documentation's own example must not open a server to a network.
SAMPLE_KEY: Final = "your-api-key-here"


async def require_keys(settings: Settings, keys: KeyRing) -> None:
    """Refuse to be heard by other machines without any key, or with the one printed in the documentation.

    Raises:
        ConfigurationError: says what to set.
    """
    if is_loopback(settings.host):
        return
    if settings.api_key == SAMPLE_KEY:
        raise ConfigurationError(
            f"ORCHESTRA_API_KEY is the documentation's example; choose another for {settings.host}"
        )
    if not await keys.has_any():
        raise ConfigurationError(
            f"refusing to listen on {settings.host} without an API key: set ORCHESTRA_API_KEY, "
            "or make one with `orchestra keys create`"
        )
