"""Who may call: programs on this machine, but no web page.

The protocol has no keys, so that being reachable is being allowed. A page in a browser can reach loopback too: by a
name that its owner points here (the Host header shows it) or by a cross-origin request (the Origin header shows it).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ai_task_orchestra.model_backend.protocol import ProtocolError

MAX_BODY_BYTES = 16 * 1024 * 1024


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LocalOnly:
    """Middleware that refuses other hosts and origins (403)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if not _local(f"//{headers.get('host', '')}") or (origin is not None and not _local(origin)):
                response = JSONResponse({"error": "only programs on this machine may call"}, 403)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _local(url: str) -> bool:
    try:
        return is_loopback((urlsplit(url).hostname or "").lower())
    except ValueError:
        return False


async def read_body(request: Request) -> bytes:
    """The request's body.

    Raises:
        ProtocolError: 413, it is longer than `MAX_BODY_BYTES`.
    """
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MAX_BODY_BYTES:
            raise ProtocolError(413, f"the request body is longer than {MAX_BODY_BYTES} bytes")
    return bytes(body)
