"""A TCP proxy between a program and a server.

It can be cut: for the program the server is down then. It can fall silent, as a server that hangs. And it can vanish,
as a machine whose network is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from urllib.parse import urlsplit, urlunsplit


@contextlib.contextmanager
def closed_to_all(port: int = 0) -> Iterator[socket.socket]:
    """A port at which connecting gets no answer: its queue is full, and the system drops what more comes."""
    with socket.socket() as server, contextlib.ExitStack() as callers:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen(0)
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield server


class TcpProxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._stack = contextlib.ExitStack()
        self.port = 0

    async def open(self) -> None:
        """Accept connections (again)."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse connections, and break those that are open."""
        self._stack.close()
        if self._server:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def be_silent(self) -> None:
        """Let nothing through, in any direction, on any connection; new ones are accepted."""
        self._speaks.clear()

    def vanish(self) -> None:
        """Answer nothing any more, not even a new connection."""
        self.be_silent()
        if self._server:
            self._server.close()
        self._stack.enter_context(closed_to_all(self.port))

    def speak(self) -> None:
        """Let everything through again, also what has come meanwhile."""
        self._speaks.set()

    async def reappear(self) -> None:
        """Be there again; let through what has come meanwhile."""
        self._stack.close()
        self.speak()
        await self.open()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        server_writer = None
        try:
            await self._speaks.wait()
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            pipes = self._pipes(reader, server_writer, server_reader, writer)
            copies = [asyncio.create_task(pipe) for pipe in pipes]
            try:
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, server_writer):
                if end:
                    end.transport.abort()

    def _pipes(
        self,
        reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[Coroutine[None, None, None], Coroutine[None, None, None]]:
        """What carries a new connection's two directions."""
        return self._copy(reader, server_writer), self._copy(server_reader, writer)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._speaks.wait()
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A proxy to the server of `url`, and the address under which it stands for it."""
    parts = urlsplit(url)
    proxy = TcpProxy(parts.hostname or "127.0.0.1", parts.port or 80)
    await proxy.open()
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"127.0.0.1:{proxy.port}"))
    finally:
        await proxy.cut()
