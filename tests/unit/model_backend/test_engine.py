"""The client of llama.cpp's API, against a scripted transport."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from ai_task_orchestra.model_backend.engine import EngineClient, Finish
from ai_task_orchestra.model_backend.protocol import ProtocolError

END = {
    "content": "",
    "stop": True,
    "stop_type": "eos",
    "timings": {"cache_n": 2, "prompt_n": 3, "prompt_ms": 1.5, "predicted_n": 4, "predicted_ms": 2.0},
}


def engine(handler: Callable[[httpx.Request], httpx.Response]) -> EngineClient:
    http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return EngineClient(http, "http://127.0.0.1:9", "secret")


def stream(*events: object, tail: str = "") -> httpx.Response:
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return httpx.Response(200, text=": ping\n\n" + lines + tail)


async def complete(*events: object, tail: str = "") -> list[str | Finish]:
    client = engine(lambda request: stream(*events, tail=tail))
    return [piece async for piece in client.complete({"prompt": "x"})]


async def test_a_completion_is_its_pieces_and_a_finish_in_nanoseconds() -> None:
    pieces = await complete({"content": "Hel", "stop": False}, {"content": "", "stop": False}, {"content": "lo"}, END)
    assert pieces == ["Hel", "lo", Finish("stop", 5, 1_500_000, 4, 2_000_000)]


async def test_text_in_the_last_event_is_not_lost_and_a_limit_is_length() -> None:
    pieces = await complete({**END, "content": "end", "stop_type": "limit"})
    assert pieces[0] == "end"
    assert isinstance(pieces[1], Finish)
    assert pieces[1].reason == "length"


async def test_a_stream_that_ends_early_is_a_stopped_runner() -> None:
    with pytest.raises(ProtocolError, match="unexpectedly stopped") as caught:
        await complete({"content": "Hel"})
    assert caught.value.status == 500


async def test_an_error_in_the_stream_is_the_engines_sentence() -> None:
    with pytest.raises(ProtocolError, match="out of slots"):
        await complete({"content": "a"}, {"error": {"message": "out of slots", "code": 500}})


async def test_a_refused_request_keeps_status_and_sentence() -> None:
    client = engine(lambda request: httpx.Response(400, json={"error": {"message": "too long", "code": 400}}))
    with pytest.raises(ProtocolError, match="too long") as caught:
        await client.render([])
    assert caught.value.status == 400
    with pytest.raises(ProtocolError, match="too long"):
        _ = [piece async for piece in client.complete({})]


async def test_a_refusal_that_is_no_json_is_still_an_error() -> None:
    client = engine(lambda request: httpx.Response(502, text="<html>"))
    with pytest.raises(ProtocolError, match="can't be read") as caught:
        await client.tokenize("x")
    assert caught.value.status == 502


async def test_a_text_too_long_to_embed_is_the_callers_mistake() -> None:
    client = engine(lambda request: httpx.Response(500, json={"error": {"message": "input is too large to process"}}))
    with pytest.raises(ProtocolError) as caught:
        await client.embed(["x"])
    assert caught.value.status == 400


async def test_a_dead_runner_is_said_to_have_stopped() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ProtocolError, match=r"unexpectedly stopped.*ConnectError"):
        await engine(refuse).tokenize("x")


async def test_every_request_carries_the_key_and_the_template_checks_the_schema() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"prompt": "p", "tokens": [1, 2], "content": "c"})

    client = engine(answer)
    assert await client.render([{"role": "user", "content": "hi"}], {"type": "object"}) == "p"
    assert await client.tokenize("hi") == [1, 2]
    assert await client.detokenize([1]) == "c"
    assert {request.headers["authorization"] for request in seen} == {"Bearer secret"}
    assert json.loads(seen[0].content)["response_format"]["json_schema"]["schema"] == {"type": "object"}
