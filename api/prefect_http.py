"""Requests to Prefect's REST API with the short retries that the hot path can afford.

Prefect's own client is not used here: it answers a 503 by sleeping 2, 4, 8, ... seconds, and importing it costs an API
process 1.5 s and the reading of the user's Prefect profile.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any, Final

import httpx

from ai_task_orchestra.errors import DispatchError, UnreachableError
from ai_task_orchestra.server_clock import ServerClock

CONNECT_SECONDS: Final = 3.0
#: Prefect gives a statement of its own 10 s; what takes longer will not be answered any more.
READ_SECONDS: Final = 15.0
CONNECTIONS: Final = 24
TRIES: Final = 4
FIRST_PAUSE_SECONDS: Final = 0.02

_BUSY: Final = frozenset({408, 429, 502, 503, 504})
_NOT_ALLOWED: Final = frozenset({401, 403})


class PrefectUnreachableError(UnreachableError):
    """Prefect does not answer.

    `sent` is False only if the request certainly never reached Prefect.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(message)


class PrefectRefusedError(DispatchError):
    """Prefect refused a request: trying the same again is of no use."""

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)


class PrefectHttp:
    """A pool of connections to one Prefect server. Close it with `aclose()`."""

    def __init__(self, url: str, auth_string: str | None) -> None:
        self.url, self.auth_string = url.rstrip("/"), auth_string
        self.clock = ServerClock()
        user, _, password = (auth_string or "").partition(":")
        self._client = httpx.AsyncClient(
            base_url=self.url,
            auth=httpx.BasicAuth(user, password) if auth_string else None,
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            headers={"Content-Type": "application/json"},
            trust_env=False,  # a proxy variable meant for the internet must not catch calls to our own server
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def get(self, path: str, **params: str) -> Any:
        """See `request`."""
        return await self.request("GET", path, params=params)

    async def post(self, path: str, body: Any) -> Any:
        """See `request`."""
        return await self.request("POST", path, body=body)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Any:
        """The answer's JSON, None for an empty one.

        Nearly every request is safe to send twice: creates carry an idempotency key, states a transition id. One that
        is not `repeatable` is sent again only if it certainly did not arrive.

        Raises:
            PrefectUnreachableError: no answer, a server error, or our credentials are not accepted.
            PrefectRefusedError: any other 4xx.
        """
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        for attempt in range(1, TRIES + 1):
            last = attempt == TRIES
            try:
                response = await self._client.request(method, path, content=content, params=params)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
                if last or not isinstance(exc, httpx.ConnectError):
                    raise PrefectUnreachableError(f"Prefect at {self.url} does not answer", sent=False) from exc
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as exc:
                if last or not repeatable:
                    raise PrefectUnreachableError("the connection to Prefect broke", sent=True) from exc
            except httpx.HTTPError as exc:
                raise PrefectUnreachableError(f"Prefect did not answer in {READ_SECONDS:g} s", sent=True) from exc
            else:
                self.clock.hear(response.headers.get("date"))
                if last or not repeatable or response.status_code not in _BUSY:
                    return _read(response)
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("the last try returns or raises")


def _read(response: httpx.Response) -> Any:
    status = response.status_code
    if status in _NOT_ALLOWED:
        raise PrefectUnreachableError(
            f"Prefect does not accept our credentials ({status}); check PREFECT_API_AUTH_STRING", sent=False
        )
    if status in _BUSY or status >= 500:
        raise PrefectUnreachableError(f"Prefect answered {status}", sent=True)
    if status >= 400:
        raise PrefectRefusedError(f"Prefect refused the request ({status}): {_detail(response)}", status=status)
    # A number that JSON does not have would make our row unreadable; PostgreSQL refuses it.
    return json.loads(response.content, parse_constant=lambda _: None) if response.content else None


def _detail(response: httpx.Response) -> str:
    """What Prefect said, without the values it may repeat from our request."""
    try:
        detail = response.json().get("detail") or response.json().get("exception_message") or ""
    except (ValueError, AttributeError):
        return "no reason given"
    if isinstance(detail, list):
        detail = "; ".join(str(item.get("msg")) for item in detail if isinstance(item, dict))
    return str(detail)[:500]
