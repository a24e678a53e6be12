"""A TCP proxy that stops a program at an exact point of what it says or hears, or loses what it is told.

What a program does to others it does over its connections. So a proxy can stop it at a named point exactly (`hold` a
request or a reply, then kill the program), and lose an answer whose work is done (`lose_replies`), without the program
knowing anything of tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import urlsplit, urlunsplit

from tests.support.tcp_proxy import TcpProxy

#: Of what a connection has carried, so much is kept to find a mark that came in two pieces.
_KEPT = 4096


class Deed(Enum):
    HOLD_REQUEST = auto()
    HOLD_REPLY = auto()
    LOSE_REPLY = auto()


@dataclass(eq=False)
class Fault:
    """What becomes of a request once its connection has carried all `marks`, one after the other.

    `times`: how often; None = always. `chance`: of each time, from the proxy's own `random`.
    """

    deed: Deed
    marks: tuple[bytes, ...]
    times: int | None = None
    chance: float = 1.0
    hits: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let go what is held, and do nothing from now on."""
        self.times = 0
        self.released.set()

    def strikes(self, dice: random.Random) -> bool:
        if (self.times is not None and self.hits >= self.times) or dice.random() >= self.chance:
            return False
        self.hits += 1
        return True


class FaultProxy(TcpProxy):
    """`random` decides where a fault has a chance; seed it to replay."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._faults: list[Fault] = []
        self._carried: dict[asyncio.Task[None], _Connection] = {}
        self.random = random.Random()  # noqa: S311

    async def break_connections(self, mark: bytes = b"") -> None:
        """Break those that have carried `mark`; new ones are accepted."""
        tasks = [task for task, connection in self._carried.items() if mark in connection.head]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def hold(self, *marks: bytes, times: int | None = None) -> Fault:
        """Do not let the request through, until released; if the client ends meanwhile, never."""
        return self._add(Fault(Deed.HOLD_REQUEST, marks, times))

    def hold_reply(self, *marks: bytes, times: int | None = None) -> Fault:
        """Let the server do its work, but nobody hear of it until released."""
        return self._add(Fault(Deed.HOLD_REPLY, marks, times))

    def lose_replies(self, *marks: bytes, times: int | None = None, chance: float = 1.0) -> Fault:
        """Let the server do its work, and break the connection instead of passing on its reply."""
        return self._add(Fault(Deed.LOSE_REPLY, marks, times, chance))

    def heal(self) -> None:
        """No faults any more; what was held goes on."""
        for fault in self._faults:
            fault.release()
        self._faults.clear()

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def _pipes(
        self,
        reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[Coroutine[None, None, None], Coroutine[None, None, None]]:
        task, connection = asyncio.current_task(), _Connection(self._faults, self.random)
        assert task
        self._carried[task] = connection
        task.add_done_callback(lambda _: self._carried.pop(task))
        return connection.requests(reader, server_writer), connection.replies(server_reader, writer)


class _Connection:
    """One client's connection, and how far each fault's marks have been seen on it."""

    def __init__(self, faults: list[Fault], dice: random.Random) -> None:
        self._faults, self._dice = faults, dice
        self._seen: dict[Fault, int] = {}
        self._tail = b""
        self._struck: Fault | None = None
        self.head = b""

    async def requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.head = (self.head + data)[:_KEPT]
                fault = self._strike(data)
                if fault is not None and fault.deed is Deed.HOLD_REQUEST:
                    fault.reached.set()
                    if not await _released(fault, reader):
                        return
                elif fault is not None:
                    self._struck = fault
                writer.write(data)
                await writer.drain()

    async def replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if (fault := self._struck) is not None:
                    self._struck = None
                    fault.reached.set()
                    if fault.deed is Deed.LOSE_REPLY:
                        return
                    await fault.released.wait()
                writer.write(data)
                await writer.drain()

    def _strike(self, data: bytes) -> Fault | None:
        """The fault, if any, that this piece of a request completes."""
        kept, text = len(self._tail), self._tail + data
        self._tail = text[-_KEPT:]
        struck: Fault | None = None
        for fault in self._faults:
            if self._complete(fault, text, kept) and struck is None and fault.strikes(self._dice):
                struck = fault
        return struck

    def _complete(self, fault: Fault, text: bytes, kept: int) -> bool:
        """Whether the last mark ends in the new piece of `text`, which begins at `kept`."""
        seen, start = self._seen.get(fault, 0), 0
        while seen < len(fault.marks):
            mark = fault.marks[seen]
            found = text.find(mark, max(start, kept - len(mark) + 1))
            if found < 0:
                self._seen[fault] = seen
                return False
            seen, start = seen + 1, found + len(mark)
        self._seen[fault] = 0
        return True


async def _released(fault: Fault, reader: asyncio.StreamReader) -> bool:
    """Wait for it; False: the client has ended."""
    while not fault.released.is_set():
        if reader.at_eof():
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await fault.released.wait()
    return True


@contextlib.asynccontextmanager
async def fault_proxy_to(url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy to the server of `url`, and the address under which it stands for it."""
    parts = urlsplit(url)
    proxy = FaultProxy(parts.hostname or "127.0.0.1", parts.port or 80)
    await proxy.open()
    login, at, _ = parts.netloc.rpartition("@")
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{proxy.port}"))
    finally:
        await proxy.cut()
