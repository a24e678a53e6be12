"""A Prefect client that rides out an outage: no pause between two tries is longer than five seconds.

Prefect's own client doubles its pauses (2, 4, 8, 16, 32 s) and then gives up; the result of an hour's work must not be
lost because the server was away for two minutes, and nobody should wait half a minute after it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.context import AsyncClientContext, SettingsContext, SyncClientContext, get_settings_context
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    Settings,
)

LONGEST_PAUSE_SECONDS: Final = 5.0
FIRST_PAUSE_SECONDS: Final = 0.25
# An internal error may be the server's database going away, or a request it will never like.
_PATIENCE_WITH_ERROR_500_SECONDS: Final = 60.0
# A kept-alive connection that the server closed in the very moment we used it: try again at once, on a new one.
_STALE_CONNECTION: Final = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


def is_unreachable(exc: BaseException) -> bool:
    """Whether Prefect is away or overloaded, so that the same request may succeed later."""
    if isinstance(exc, httpx.HTTPStatusError):
        return exc.response.status_code in (408, 429) or exc.response.status_code >= 500
    return isinstance(exc, httpx.TransportError)


class PatientClient(PrefectClient):
    """Tries each request again while Prefect is unreachable, for `patience_seconds` (0: not at all)."""

    def __init__(
        self,
        patience_seconds: float,
        *,
        ssl_context: ssl.SSLContext | None = None,
        one_try: Settings | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`one_try`: the result of `one_try_settings`, where there is no time to make them (40 ms)."""
        url = PREFECT_API_URL.value()
        if not url:
            raise ValueError("PREFECT_API_URL is not set")
        httpx_settings: dict[str, Any] = {"verify": ssl_context} if ssl_context else {}
        if transport:
            httpx_settings["transport"] = transport
        super().__init__(
            url,
            auth_string=PREFECT_API_AUTH_STRING.value(),
            api_key=PREFECT_API_KEY.value(),
            httpx_settings=httpx_settings,
        )
        self._patience_seconds = patience_seconds
        self._profile = get_settings_context().profile
        self._one_try = one_try or one_try_settings()

    async def request(self, *args: Any, **kwargs: Any) -> httpx.Response:
        """Send one request.

        Raises:
            httpx.HTTPError: Prefect refused it, or stayed unreachable for longer than the patience lasts.
        """
        began = time.monotonic()
        pause = 0.0
        while True:
            try:
                with self._without_prefects_retries():
                    return await super().request(*args, **kwargs)
            except httpx.HTTPError as exc:
                stale = pause == 0.0 and isinstance(exc, _STALE_CONNECTION)
                if not stale and (not is_unreachable(exc) or time.monotonic() - began > self._patience(exc)):
                    raise
            await asyncio.sleep(pause)
            pause = min(max(pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)

    def _patience(self, exc: httpx.HTTPError) -> float:
        if isinstance(exc, httpx.HTTPStatusError) and exc.response.status_code == 500:
            return min(self._patience_seconds, _PATIENCE_WITH_ERROR_500_SECONDS)
        return self._patience_seconds

    @contextlib.contextmanager
    def _without_prefects_retries(self) -> Iterator[None]:
        with SettingsContext(profile=self._profile, settings=self._one_try):
            yield


def one_try_settings() -> Settings:
    """The present settings, but without the retries of Prefect's client, since ours are in their place."""
    return get_settings_context().settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})


@contextlib.asynccontextmanager
async def shared_by_prefect(client: PrefectClient) -> AsyncIterator[None]:
    """Open `client`; meanwhile everything in Prefect that asks for a client in this event loop gets this one.

    Prefect's engine makes a blocking client, too, for every run, and seldom uses it: it gets a cheap one.
    """
    url = PREFECT_API_URL.value()
    context = unused_ssl_context()
    blocking = SyncPrefectClient(
        url or "",
        auth_string=PREFECT_API_AUTH_STRING.value(),
        api_key=PREFECT_API_KEY.value(),
        httpx_settings={"verify": context} if context else None,
    )
    async with AsyncClientContext.model_construct(client=client):
        with SyncClientContext.model_construct(client=blocking):
            yield


def unused_ssl_context() -> ssl.SSLContext | None:
    """For a server addressed without TLS: a context that costs nothing to make (a usual one takes 17 ms)."""
    url = PREFECT_API_URL.value() or ""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http://") else None
