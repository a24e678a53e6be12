"""What the worker ships for its children, to a Prefect that does as the test says."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx
from prefect.client.orchestration import PrefectClient

from ai_task_orchestra.worker.outbox import Outbox
from tests.support.waiting import wait_until


class FakePrefect:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.requests = 0
        self.failures: list[Exception] = []

    async def create_logs(self, lines: list[dict[str, Any]]) -> None:
        self._answer()
        self.lines += [line["message"] for line in lines]

    async def request(self, method: str, path: str, *, json: list[dict[str, Any]]) -> None:
        assert (method, path) == ("POST", "/events")
        self._answer()
        self.events += json

    def _answer(self) -> None:
        self.requests += 1
        if self.failures:
            raise self.failures.pop(0)


def lines(*texts: str) -> dict[str, Any]:
    return {"event": "relay", "lines": [{"message": text, "__payload_size__": 10} for text in texts], "events": []}


def step(name: str, *states: str) -> dict[str, Any]:
    events = [
        {
            "id": f"{name}-{state}",
            "event": f"prefect.task-run.{state.capitalize()}",
            "resource": {"prefect.resource.id": f"prefect.task-run.{name}", "prefect.state-type": state},
            "follows": f"{name}-before-{state}",
        }
        for state in states
    ]
    return {"event": "relay", "lines": [], "events": events}


def refusal(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://prefect")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


def make() -> tuple[FakePrefect, Outbox]:
    prefect = FakePrefect()
    return prefect, Outbox(cast(PrefectClient, prefect))


async def test_what_several_children_say_goes_out_in_one_request_of_each_kind() -> None:
    prefect, outbox = make()
    for message in (lines("a", "b"), lines("c"), step("x", "PENDING", "RUNNING"), step("y", "PENDING")):
        outbox.take(message)
    await outbox.ship()
    assert prefect.lines == ["a", "b", "c"]
    assert len(prefect.events) == 3
    assert prefect.requests == 2


async def test_a_step_that_has_ended_meanwhile_is_told_of_once_and_follows_nothing() -> None:
    prefect, outbox = make()
    outbox.take(step("short", "PENDING", "RUNNING", "COMPLETED"))
    outbox.take(step("long", "PENDING", "RUNNING"))
    await outbox.ship()
    assert [event["id"] for event in prefect.events] == ["short-COMPLETED", "long-PENDING", "long-RUNNING"]
    assert prefect.events[0]["follows"] is None
    assert prefect.events[1]["follows"] == "long-before-PENDING"


async def test_what_an_absent_prefect_does_not_take_is_kept_in_order() -> None:
    prefect, outbox = make()
    prefect.failures = [httpx.ConnectError("away"), refusal(503)]
    async with outbox.running(last_seconds=5):
        outbox.take(lines("first"))
        await wait_until(lambda: prefect.requests, description="it was tried")
        outbox.take(lines("second"))
        await wait_until(lambda: len(prefect.lines) == 2, description="everything has arrived")
    assert prefect.lines == ["first", "second"]


async def test_what_prefect_refuses_does_not_keep_the_rest_back() -> None:
    prefect, outbox = make()
    prefect.failures = [refusal(422)]
    outbox.take(lines("bad"))
    await outbox.ship()
    outbox.take(lines("good"))
    await outbox.ship()
    assert prefect.lines == ["good"]


async def test_at_the_end_everything_that_is_left_is_shipped() -> None:
    prefect, outbox = make()
    async with outbox.running(last_seconds=5):
        outbox.take(lines("last words"))
        await asyncio.sleep(0)
    assert prefect.lines == ["last words"]
