"""Runs an empty flow once in the template process, against a stand-in for Prefect's server, before the first fork.

Much in Prefect, pydantic, httpx and rich is made at its first use. Made here, it exists in every child.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.logging.handlers import PrefectConsoleHandler, set_api_log_sink
from prefect.states import Pending

from ai_task_orchestra.worker.child_client import ChildClient
from ai_task_orchestra.worker.patient_client import shared_by_prefect


class _StandIn:
    """Accepts every state of one flow run."""

    def __init__(self, run: FlowRun) -> None:
        self._run: dict[str, Any] = run.model_dump(mode="json")

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/set_state"):
            proposed = json.loads(request.content)["state"]
            state = self._run["state"] | {key: proposed[key] for key in ("type", "name")} | {"id": str(uuid4())}
            self._run |= {"state": state, "state_type": state["type"], "state_name": state["name"]}
            return httpx.Response(201, json={"state": state, "status": "ACCEPT", "details": {"type": "accept_details"}})
        if request.method == "GET" and request.url.path.endswith(self._run["id"]):
            return httpx.Response(200, json=self._run)
        return httpx.Response(200, json={})


@flow(name="rehearsal", persist_result=False)
async def _empty() -> None:
    pass


def rehearse(
    make_client: Callable[[httpx.AsyncBaseTransport], ChildClient],
    execute: Callable[[Any, FlowRun], Awaitable[dict[str, Any]]],
) -> bool:
    """Execute the empty flow as a child would; whether it went as it should. Nothing is sent and nothing is shown."""
    run = FlowRun(flow_id=uuid4(), name="rehearsal", state=Pending())

    async def play() -> dict[str, Any]:
        client = make_client(httpx.MockTransport(_StandIn(run).answer))
        async with shared_by_prefect(client):
            parsed = FlowRun.model_validate_json(run.model_dump_json())
            client.begin(parsed)
            report = await execute(_empty, parsed)
            await client.finish()
            return report

    set_api_log_sink(lambda _: None)
    try:
        with _quiet():
            return asyncio.run(play()) == {"state": "COMPLETED"}
    finally:
        set_api_log_sink(None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("prefect", None):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, PrefectConsoleHandler):
                    stack.enter_context(handler.console.capture())
        yield
