"""Requests to Prefect: what is tried again, and what each answer means."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable

import httpx
import pytest

from api.prefect_http import PrefectHttp, PrefectRefusedError, PrefectUnreachableError

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, auth: str | None = None) -> PrefectHttp:
    http = PrefectHttp("http://prefect.test/api/", auth)
    http._client = httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url=http.url, auth=http._client.auth)
    return http


def answers(*given: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """One answer after the other; the last one for ever."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = given[min(len(seen), len(given)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle, seen


async def test_a_busy_server_is_asked_again_within_moments() -> None:
    handle, seen = answers(httpx.Response(503), httpx.Response(502), httpx.Response(200, json={"a": 1}))
    begun = time.monotonic()
    assert await client(handle).post("/x", {"b": 2}) == {"a": 1}
    assert len(seen) == 3
    assert seen[0].content == seen[2].content == b'{"b": 2}'
    assert time.monotonic() - begun < 2


async def test_a_broken_connection_is_tried_again_and_then_unreachable() -> None:
    handle, seen = answers(httpx.ReadError("gone"), httpx.Response(200, json=[]))
    assert await client(handle).get("/x") == []
    handle, seen = answers(httpx.RemoteProtocolError("gone"))
    with pytest.raises(PrefectUnreachableError) as unreachable:
        await client(handle).get("/x")
    assert unreachable.value.sent
    assert len(seen) == 4


async def test_a_refused_connection_was_certainly_never_sent() -> None:
    handle, _ = answers(httpx.ConnectError("refused"))
    with pytest.raises(PrefectUnreachableError) as unreachable:
        await client(handle).get("/x")
    assert not unreachable.value.sent


async def test_a_time_out_is_not_waited_for_twice_and_may_have_been_heard() -> None:
    handle, seen = answers(httpx.ReadTimeout("slow"))
    with pytest.raises(PrefectUnreachableError) as unreachable:
        await client(handle).get("/x")
    assert unreachable.value.sent
    assert len(seen) == 1


@pytest.mark.parametrize("status", [500, 501, 503, 429])
async def test_a_server_that_stays_in_trouble_is_unreachable(status: int) -> None:
    handle, _ = answers(httpx.Response(status))
    with pytest.raises(PrefectUnreachableError):
        await client(handle).get("/x")


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_a_refusal_is_not_tried_again_and_does_not_repeat_what_was_sent(status: int) -> None:
    detail = [{"msg": "too long", "input": "secret", "loc": ["body"]}]
    handle, seen = answers(httpx.Response(status, json={"detail": detail}))
    with pytest.raises(PrefectRefusedError, match="too long") as refused:
        await client(handle).post("/x", {})
    assert refused.value.status == status
    assert "secret" not in str(refused.value)
    assert len(seen) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_wrong_credentials_are_named_and_fail_no_task(status: int) -> None:
    handle, _ = answers(httpx.Response(status))
    with pytest.raises(PrefectUnreachableError, match="PREFECT_API_AUTH_STRING"):
        await client(handle, "user:wrong").get("/x")


async def test_credentials_are_sent_as_basic_authentication() -> None:
    handle, seen = answers(httpx.Response(200, json={}))
    await client(handle, "user:pass:word").get("/x")
    assert seen[0].headers["Authorization"] == "Basic " + base64.b64encode(b"user:pass:word").decode()


async def test_numbers_that_json_does_not_have_become_null() -> None:
    handle, _ = answers(httpx.Response(200, content=b'{"a": NaN, "b": [Infinity, 1]}'))
    assert await client(handle).get("/x") == {"a": None, "b": [None, 1]}
