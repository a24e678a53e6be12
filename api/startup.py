"""What must be true before the API listens."""

from __future__ import annotations

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.exposure import is_loopback, refuse_dangers
from ai_task_orchestra.settings import Settings
from api.key_ring import KeyRing


async def refuse_open_doors(settings: Settings, keys: KeyRing) -> None:
    """Refuse to be heard by other machines without any key, or with one that others know or can guess or read.

    Raises:
        ConfigurationError: says what to do about it.
    """
    refuse_dangers(settings)
    if not is_loopback(settings.host) and not await keys.has_any():
        raise ConfigurationError(
            f"refusing to listen on {settings.host} without an API key: set ORCHESTRA_API_KEY, "
            "or make one with `orchestra keys create`"
        )
