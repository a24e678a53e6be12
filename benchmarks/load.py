"""A client that costs the machine next to nothing: requests are bytes, of an answer only status and body are read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, Final, Self
from urllib.parse import urlsplit

IDLE_SECONDS: Final = 3.0


class Connection:
    """One kept-alive HTTP/1.1 connection. An async context manager."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._base = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        lines = {"Host": f"{self._host}:{self._port}", "Content-Type": "application/json", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._used = 0.0

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._used = time.monotonic()

    def prepare(self, method: str, path: str, body: Any = None) -> bytes:
        """A request as bytes."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {self._base}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if time.monotonic() - self._used > IDLE_SECONDS:  # servers close what is idle for 5 s
            self._writer.close()
            await self._open()
        self._used = time.monotonic()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
        return int(lines[0].split()[1]), await self._reader.readexactly(length)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a successful answer.

        Raises:
            RuntimeError: it was none.
        """
        status, content = await self.send(self.prepare(method, path, body))
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {content[:300]!r}")
        return json.loads(content) if content else None


async def pour(connections: Sequence[Connection], request: bytes, count: int) -> tuple[list[bytes], list[float], float]:
    """Send `request` `count` times, each connection one after the other, all at once.

    Returns the bodies, how long each took in milliseconds, and how long all took in seconds.
    """
    left = iter(range(count))
    bodies: list[bytes] = []
    took: list[float] = []

    async def work(connection: Connection) -> None:
        for _ in left:
            began = time.perf_counter()
            status, body = await connection.send(request)
            took.append((time.perf_counter() - began) * 1000)
            if status >= 400:
                raise RuntimeError(f"{status} {body[:300]!r}")
            bodies.append(body)

    began = time.perf_counter()
    await asyncio.gather(*map(work, connections))
    return bodies, took, time.perf_counter() - began
