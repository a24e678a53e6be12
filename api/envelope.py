"""Around every request: an id, the security headers, one log line, and the last resort for an unexpected error."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import internal_error

logger = logging.getLogger(__name__)

REQUEST_ID: Final = "X-Request-ID"
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_MAX_LOGGED_PATH: Final = 200

#: On every answer. Answers may hold prompts and results: nobody keeps a copy, frames, sniffs or embeds them, and a
#: browser that is made to show one as a page loads and runs nothing. Headers that would open the API to the scripts of
#: other pages (`Access-Control-...`) are on none.
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
#: The documentation page runs Swagger's script, which FastAPI takes from there.
_DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_DOCS_PATH: Final = "/docs"


class RequestEnvelope:
    """Pure ASGI middleware, the outermost of ours.

    A given `X-Request-ID` is kept if it is short and plain, else one is made; it is in the answer and, through
    structlog's context, in every line logged meanwhile. An exception that nothing else handled is logged here with its
    traceback and answered with a 500 that shows neither text nor path.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = _request_id(scope)
        started = time.perf_counter()
        status: int | None = None

        async def send_enveloped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if scope["path"] == _DOCS_PATH and status == 200:
                    headers["Content-Security-Policy"] = _DOCS_POLICY
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_enveloped)
            except ClientDisconnect:
                logger.info("client_disconnected", extra={"request_id": request_id})
            except Exception:
                logger.exception("request_failed", extra={"request_id": request_id})
                if status is not None:
                    raise  # half an answer is out: only closing the connection tells the client
                await internal_error().answer()(scope, receive, send_enveloped)
            finally:
                _log_request(scope, request_id, status, time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).getlist(REQUEST_ID)
    if len(given) == 1 and _SANE_ID.fullmatch(given[0]):
        return given[0]
    return uuid.uuid4().hex


def _log_request(scope: Scope, request_id: str, status: int | None, seconds: float) -> None:
    """The query is left out: people put secrets there, and nothing of ours is needed from it."""
    logger.info(
        "request",
        extra={
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"][:_MAX_LOGGED_PATH],
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "api_key": scope.get("api_key_name"),
            "client": scope["client"][0] if scope.get("client") else None,
        },
    )
