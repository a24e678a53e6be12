"""One answer of the protocol: streamed as NDJSON or sent whole, ended at once when the caller hangs up.

An error before the first record keeps its HTTP status; a later one is a last line `{"error": ...}` without `done`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ai_task_orchestra.model_backend.protocol import ProtocolError

log = logging.getLogger(__name__)

Record = dict[str, Any]
Records = AsyncGenerator[Record, None]
Merge = Callable[[list[Record]], Record]


def last(records: list[Record]) -> Record:
    """The last record is the whole answer."""
    return records[-1]


def joined(shape: Callable[[str], Record], read: Callable[[Record], str]) -> Merge:
    """The last record with the text of all."""
    return lambda records: {**records[-1], **shape("".join(read(record) for record in records))}


class Answer(Response):
    """Sends `records`, which begin their work when the first is asked for.

    Starlette's own streaming response notices a caller that hangs up only once it streams; here it counts from the
    beginning, so that waiting for a model or a slot ends too.
    """

    def __init__(self, records: Records, *, stream: bool, merge: Merge = last) -> None:
        super().__init__()
        self._records = records
        self._stream = stream
        self._merge = merge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request until the answer is out or the caller is gone."""
        work = asyncio.create_task(self._respond(scope, receive, send))
        gone = asyncio.create_task(_hang_up(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._records) as records:
            try:
                first = await anext(records)
            except Exception as exc:
                error = as_error(exc)
                response = JSONResponse({"error": error.message}, error.status)
                await response(scope, receive, send)
                return
            if self._stream:
                await self._send_lines(first, records, send)
            else:
                await self._send_whole(first, records, scope, receive, send)

    async def _send_lines(self, first: Record, records: Records, send: Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_line(send, first)
        try:
            async for record in records:
                await _send_line(send, record)
        except Exception as exc:
            await _send_line(send, {"error": as_error(exc).message})
        await send({"type": "http.response.body", "body": b""})

    async def _send_whole(self, first: Record, records: Records, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            everything = [first] + [record async for record in records]
            response = JSONResponse(self._merge(everything))
        except Exception as exc:
            error = as_error(exc)
            response = JSONResponse({"error": error.message}, error.status)
        await response(scope, receive, send)


async def _send_line(send: Send, record: Record) -> None:
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    await send({"type": "http.response.body", "body": line, "more_body": True})


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_error(exc: Exception) -> ProtocolError:
    """Anything unforeseen is logged, and only said to have happened."""
    if isinstance(exc, ProtocolError):
        return exc
    log.error("answer_failed", exc_info=exc)
    return ProtocolError(500, "internal error of the embedded backend")
