"""The REST client: what it sends, and what it makes of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from ai_task_orchestra import client as client_module
from ai_task_orchestra.client import OrchestraClient
from ai_task_orchestra.errors import (
    ConflictError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    OrchestraError,
    RefusedError,
    UnreachableError,
)

TASK = {"id": "t1", "status": "queued", "priority": 5, "created_at": "2026-11-24T10:30:00.000000Z", "template": "greet"}


def answering(handler: Callable[[httpx.Request], httpx.Response], key: str | None = "k") -> OrchestraClient:
    return OrchestraClient("http://api.test/", key, transport=httpx.MockTransport(handler))


def recording(*answers: httpx.Response) -> tuple[OrchestraClient, list[httpx.Request]]:
    """A client whose requests are kept; the last answer is given again and again."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return answers[min(len(requests), len(answers)) - 1]

    return answering(handle), requests


async def test_a_task_is_sent_with_the_key_and_only_what_was_asked_for() -> None:
    client, requests = recording(httpx.Response(201, json=TASK))
    async with client:
        assert (await client.submit("greet", {"name": "Ada"}))["id"] == "t1"
        await client.submit("greet", {}, priority=9, depends_on=["a"], on_dependency_failure="run", idempotency_key="x")
    first, second = requests
    assert str(first.url) == "http://api.test/api/v1/tasks"
    assert first.headers["X-API-Key"] == "k"
    assert json.loads(first.content) == {
        "template": "greet",
        "parameters": {"name": "Ada"},
        "priority": 5,
        "depends_on": [],
    }
    assert "Idempotency-Key" not in first.headers
    assert second.headers["Idempotency-Key"] == "x"
    assert json.loads(second.content)["on_dependency_failure"] == "run"


async def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    client, requests = recording(httpx.Response(200, json=TASK))
    async with client:
        for task_id in ("../templates", "a/b?c=d#e", "ä"):
            await client.get(task_id)
    assert [request.url.raw_path for request in requests] == [
        b"/api/v1/tasks/..%2Ftemplates",
        b"/api/v1/tasks/a%2Fb%3Fc%3Dd%23e",
        b"/api/v1/tasks/%C3%A4",
    ]


async def test_filters_that_are_not_given_are_not_sent() -> None:
    client, requests = recording(httpx.Response(200, json=[]))
    async with client:
        await client.tasks(status="failed")
    assert dict(requests[0].url.params) == {"status": "failed", "limit": "100", "offset": "0"}


async def test_every_other_endpoint_is_reached_as_the_reference_says() -> None:
    client, requests = recording(httpx.Response(200, json={}))
    async with client:
        await client.by_status()
        await client.change_priority("t1", 8)
        await client.cancel("t1")
        await client.logs("t1", offset=7)
        await client.templates()
        await client.template("greet")
        await client.validate("greet", {"name": 1})
    assert [(r.method, r.url.raw_path.decode().removeprefix("/api/v1")) for r in requests] == [
        ("GET", "/tasks/status?limit=100"),
        ("PATCH", "/tasks/t1/priority?priority=8"),
        ("DELETE", "/tasks/t1"),
        ("GET", "/tasks/t1/logs?limit=1000&offset=7"),
        ("GET", "/templates"),
        ("GET", "/templates/greet"),
        ("POST", "/templates/validate?template_name=greet"),
    ]
    assert json.loads(requests[-1].content) == {"name": 1}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, RefusedError),
        (403, RefusedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, InvalidRequestError),
        (422, InvalidRequestError),
        (429, LimitError),
        (500, UnreachableError),
        (503, UnreachableError),
    ],
)
async def test_an_error_has_its_own_class_and_the_apis_words(status: int, kind: type[OrchestraError]) -> None:
    client, _ = recording(httpx.Response(status, json={"detail": "In the API's words.", "code": "x"}))
    async with client:
        with pytest.raises(kind, match="In the API's words") as caught:
            await client.get("t1")
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"text"', b'{"detail": "x", "errors": [1]}'])
async def test_an_error_of_something_else_than_our_api_is_still_an_error(body: bytes) -> None:
    client, _ = recording(httpx.Response(502, content=body))
    async with client:
        with pytest.raises(UnreachableError, match="502"):
            await client.get("t1")


async def test_an_answer_without_json_is_not_our_api() -> None:
    client, _ = recording(httpx.Response(200, text="<html>welcome</html>"))
    async with client:
        with pytest.raises(UnreachableError, match="does not answer like this API"):
            await client.get("t1")


async def test_nobody_there_is_named_with_the_address() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    async with answering(refuse) as client:
        with pytest.raises(UnreachableError, match=r"http://api\.test: connection refused"):
            await client.get("t1")


def in_turn(*statuses: str) -> tuple[OrchestraClient, list[httpx.Request]]:
    return recording(*(httpx.Response(200, json={**TASK, "status": status}) for status in statuses))


async def test_waiting_ends_with_the_final_task_and_tells_each_change_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_POLL_SECONDS", 0.001)
    seen: list[str] = []
    client, requests = in_turn("queued", "queued", "running", "running", "failed")

    def changed(task: Any) -> None:
        seen.append(task["status"])

    async with client:
        assert (await client.wait("t1", changed=changed))["status"] == "failed"
    assert seen == ["queued", "running", "failed"]
    assert len(requests) == 5


async def test_waiting_can_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_POLL_SECONDS", 0.001)
    client, _ = in_turn("running")
    async with client:
        with pytest.raises(TimeoutError, match="still running"):
            await client.wait("t1", timeout_seconds=0.02)
