"""One answer on the wire: status, lines, and what happens when the caller hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from ai_task_orchestra.model_backend.answers import Answer, joined
from ai_task_orchestra.model_backend.protocol import ProtocolError

Sent = list[dict[str, Any]]


class Caller:
    """The other end of one request."""

    def __init__(self) -> None:
        self.sent: Sent = []
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    async def take(self, answer: Answer) -> None:
        async with asyncio.timeout(5):
            await answer({"type": "http"}, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


async def records(*items: Any) -> AsyncGenerator[dict[str, Any], None]:
    for item in items:
        await asyncio.sleep(0)
        if isinstance(item, Exception):
            raise item
        yield item


async def test_a_stream_is_a_line_per_record() -> None:
    caller = Caller()
    await caller.take(Answer(records({"a": "ü"}, {"done": True}), stream=True))
    assert caller.status == 200
    assert caller.sent[0]["headers"] == [(b"content-type", b"application/x-ndjson")]
    assert caller.lines == [{"a": "ü"}, {"done": True}]
    assert caller.sent[-1].get("more_body", False) is False


async def test_a_whole_answer_is_the_last_record_with_the_text_of_all() -> None:
    merge = joined(lambda text: {"t": text}, lambda record: record["t"])
    caller = Caller()
    await caller.take(Answer(records({"t": "a"}, {"t": "b"}, {"t": "", "n": 1}), stream=False, merge=merge))
    assert caller.lines == [{"t": "ab", "n": 1}]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_record_keeps_its_status(stream: bool) -> None:
    caller = Caller()
    await caller.take(Answer(records(ProtocolError(503, "busy")), stream=stream))
    assert (caller.status, caller.lines) == (503, [{"error": "busy"}])


async def test_a_later_error_is_the_last_line_of_a_stream() -> None:
    caller = Caller()
    await caller.take(Answer(records({"a": 1}, ProtocolError(500, "broke")), stream=True))
    assert (caller.status, caller.lines) == (200, [{"a": 1}, {"error": "broke"}])


async def test_a_later_error_is_the_status_of_a_whole_answer() -> None:
    caller = Caller()
    await caller.take(Answer(records({"a": 1}, ProtocolError(500, "broke")), stream=False))
    assert (caller.status, caller.lines) == (500, [{"error": "broke"}])


async def test_what_was_not_foreseen_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caller = Caller()
    await caller.take(Answer(records(KeyError("/secret/path")), stream=True))
    assert caller.status == 500
    assert b"secret" not in caller.body
    assert "answer_failed" in caplog.messages


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begun", [True, False])
async def test_a_caller_that_hangs_up_ends_the_work_wherever_it_is(stream: bool, begun: bool) -> None:
    caller, ended = Caller(), asyncio.Event()

    async def endless() -> AsyncGenerator[dict[str, Any], None]:
        try:
            if begun:
                yield {"a": 1}
            caller.left.set()
            await asyncio.Event().wait()
            yield {"never": True}
        finally:
            ended.set()

    await caller.take(Answer(endless(), stream=stream))
    assert ended.is_set()
    assert b"never" not in caller.body
