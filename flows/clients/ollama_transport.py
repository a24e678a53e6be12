"""The HTTP transport below the official Ollama client: bounds what a server may send and mends what httpx would tear.

Why below the client: it offers no limit on a line or an answer, drops the headers of error answers, and httpx splits
lines at characters (U+0085, U+2028, U+2029) that JSON allows inside a string.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import Final

import httpx

from ai_task_orchestra.errors import ModelOutputError

# Beyond this much of an error answer nothing is read: the message is cut to a line anyway.
_MAX_ERROR_BYTES: Final = 64 * 1024


class BoundedTransport(httpx.AsyncBaseTransport):
    """Opens one connection per request; closing the answer closes the connection, which ends the generation.

    `status` and `retry_after` are those of the latest answer.
    """

    def __init__(self, *, encrypted: bool, max_line_bytes: int, max_answer_bytes: int) -> None:
        # Building httpx's default TLS context takes tens of milliseconds: not for plain HTTP.
        verify = ssl.create_default_context() if encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._inner = httpx.AsyncHTTPTransport(verify=verify, limits=httpx.Limits(max_keepalive_connections=0))
        self._max_line_bytes = max_line_bytes
        self._max_answer_bytes = max_answer_bytes
        self.status: int | None = None
        self.retry_after: str | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request.

        Raises:
            ModelOutputError: the answer is compressed, which nobody asked for and which no limit could bound.
        """
        self.status = self.retry_after = None
        response = await self._inner.handle_async_request(request)
        self.status = response.status_code
        self.retry_after = response.headers.get("retry-after")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise ModelOutputError("the model server sent a compressed answer")
        body = response.stream
        if not isinstance(body, httpx.AsyncByteStream):
            raise TypeError("an asynchronous transport returns asynchronous streams")
        bounded = (
            _ErrorBody(body)
            if response.is_error
            else _Lines(body, max_line_bytes=self._max_line_bytes, max_answer_bytes=self._max_answer_bytes)
        )
        return httpx.Response(
            response.status_code, headers=response.headers, stream=bounded, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _ErrorBody(httpx.AsyncByteStream):
    """The beginning of an error answer."""

    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _MAX_ERROR_BYTES
        async for chunk in self._body:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._body.aclose()


class _Lines(httpx.AsyncByteStream):
    """An answer in whole lines, bounded."""

    def __init__(self, body: httpx.AsyncByteStream, *, max_line_bytes: int, max_answer_bytes: int) -> None:
        self._body = body
        self._max_line_bytes = max_line_bytes
        self._max_answer_bytes = max_answer_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        waiting = bytearray()
        received = 0
        async for chunk in self._body:
            received += len(chunk)
            whole, newline, rest = chunk.rpartition(b"\n")
            if newline:
                yield _one_line_each(bytes(waiting) + whole + newline)
                waiting.clear()
            waiting += rest
            if len(waiting) > self._max_line_bytes or received > self._max_answer_bytes:
                raise ModelOutputError("the model server sent more than an answer may have")
        if waiting:
            yield _one_line_each(bytes(waiting))

    async def aclose(self) -> None:
        await self._body.aclose()


def _one_line_each(data: bytes) -> bytes:
    """Escape the characters that httpx takes for line ends; JSON reads the escapes as the same characters."""
    if b"\xc2\x85" in data or b"\xe2\x80" in data:
        for raw, escaped in ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029")):
            data = data.replace(raw, escaped)
    return data
