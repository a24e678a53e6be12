"""One HTTP request and its answer over a socket that the test may cut, reset or leave hanging at any byte.

A web framework hides the socket, so the scripted servers speak HTTP themselves (h11 does the framing). Every
connection serves one request and is closed: nothing of a fault leaks into the next request.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import h11

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    """A request, read whole. `path` has no query string."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON; raises ValueError."""
        return json.loads(self.body)


class Exchange:
    """The answering side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def read(self) -> Request | None:
        """The request, or None if the peer left before it was complete or sent no HTTP."""
        head: h11.Request | None = None
        body = bytearray()
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._reader.read(65536))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage) and head is not None:
                    break
                else:
                    return None
                if len(body) > MAX_REQUEST_BYTES:
                    return None
        except (h11.RemoteProtocolError, ConnectionError):
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        path = head.target.decode("latin-1").split("?", 1)[0]
        return Request(head.method.decode("ascii"), path, headers, bytes(body))

    async def peer_left(self) -> None:
        """Return when the client closes its side."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            return

    async def start(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Send the status line and headers of a chunked answer."""
        fields = [("Content-Type", content_type), ("Connection", "close"), *(headers or {}).items()]
        await self._send(h11.Response(status_code=status, headers=fields, reason=b""))

    async def send(self, data: bytes) -> None:
        """Send one chunk."""
        if data:
            await self._send(h11.Data(data=data))

    async def finish(self) -> None:
        """End the answer properly."""
        await self._send(h11.EndOfMessage())

    async def reply(
        self, status: int, data: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole answer at once."""
        length = {"Content-Length": str(len(data)), **(headers or {})}
        await self.start(status, content_type, length)
        await self.send(data)
        await self.finish()

    async def reply_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """A whole JSON answer."""
        await self.reply(status, json.dumps(value).encode(), "application/json; charset=utf-8", headers)

    def reset(self) -> None:
        """Break the connection with a TCP reset, as a crashed or killed server does."""
        sock = cast("socket.socket | None", self._writer.get_extra_info("socket"))
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """Close the connection wherever the answer stands."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until the connection is gone."""
        try:
            await self._writer.wait_closed()
        except (ConnectionError, BrokenPipeError):
            return

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()
