"""How the worker, its template process and the children talk: JSON objects with a length in front, over a socket pair.

The format is four bytes, big-endian: the length of the JSON text that follows. Encoding and decoding know no socket, so
the single-threaded template process (blocking) and the event loops (`ChildLink`) share them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from ai_task_orchestra.errors import OrchestraError

Message = dict[str, Any]

# A message of a child that is no report of its run: log lines and events for Prefect.
RELAYED: Final = "relay"

_HEADER: Final = struct.Struct(">I")
# Far above the largest flow run (parameters are limited to 512 KiB); a larger length is no length but garbage.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024


class LinkBrokenError(OrchestraError):
    """The connection to another process of the worker broke."""

    code: ClassVar[str] = "link_broken"


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as it goes over the wire.

    Raises:
        LinkBrokenError: it is larger than the other side would take.
    """
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_MESSAGE_BYTES:
        raise LinkBrokenError(f"a message of {len(body)} bytes is too large")
    return _HEADER.pack(len(body)) + body


class Decoder:
    """Turns the bytes that arrive, however they are cut, into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def incomplete(self) -> bool:
        """Whether a message has begun but not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes.

        Raises:
            LinkBrokenError: the bytes are none of ours; nothing after them can be understood.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_MESSAGE_BYTES:
                raise LinkBrokenError(f"a message announces {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(_parse(bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return messages


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except ValueError as exc:
        raise LinkBrokenError("a message is no JSON") from exc
    if not isinstance(message, dict):
        raise LinkBrokenError("a message is no JSON object")
    return message


class ChildLink:
    """One end of a socket pair, for use in one event loop. Sending and receiving may go on at the same time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = Decoder()
        self._waiting: list[Message] = []
        self._sending = asyncio.Lock()

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message.

        Raises:
            LinkBrokenError: the other side is gone.
        """
        async with self._sending:
            try:
                await asyncio.get_running_loop().sock_sendall(self._sock, encode(message))
            except OSError as exc:
                raise LinkBrokenError from exc

    async def receive(self) -> Message | None:
        """The next message; None once the other side has closed.

        Raises:
            LinkBrokenError: the other side went away in the middle of a message, or sent something else.
        """
        while not self._waiting:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._sock, _READ_BYTES)
            except ConnectionResetError:
                data = b""
            except OSError as exc:
                raise LinkBrokenError from exc
            if not data:
                if self._decoder.incomplete:
                    raise LinkBrokenError("the connection ended in the middle of a message")
                return None
            self._waiting += self._decoder.feed(data)
        return self._waiting.pop(0)

    def send_blocking(self, message: Mapping[str, Any]) -> None:
        """Send outside an event loop.

        Raises:
            LinkBrokenError: the other side is gone.
        """
        self._sock.setblocking(True)
        try:
            self._sock.sendall(encode(message))
        except OSError as exc:
            raise LinkBrokenError from exc

    def end(self) -> None:
        """Say no more: the other side reads the end. What it still sends can be received."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close our end; only when nobody is receiving."""
        self._sock.close()
