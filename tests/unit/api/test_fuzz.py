"""Anything at all, sent to `POST /tasks`: an answer of the reference or a clear error, and the list still reads."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.api_app import INFERENCE, ApiUnderTest, BuiltApp, problem

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
#: Requests that are nearly right: some fields of a valid one replaced or added.
NEARLY = st.fixed_dictionaries(
    {
        "template": st.sampled_from(["ollama-inference", "every-type", "nope"]) | ANY_JSON,
        "parameters": st.just(INFERENCE) | st.dictionaries(st.text(max_size=8), ANY_JSON, max_size=4) | ANY_JSON,
    },
    optional={
        "priority": st.integers(-1, 12) | ANY_JSON,
        "depends_on": st.lists(st.text(max_size=40), max_size=3) | ANY_JSON,
        "on_dependency_failure": st.sampled_from(["cancel", "run", "x"]) | ANY_JSON,
        "more": ANY_JSON,
    },
)


async def send(built: BuiltApp, body: bytes, idempotency_key: bytes | None = None) -> None:
    async with built.running() as api:
        headers: dict[Any, Any] = {"content-type": "application/json"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        await check(api, await api.client.post("/api/v1/tasks", content=body, headers=headers))


async def check(api: ApiUnderTest, answer: Any) -> None:
    if answer.status_code == 201:
        assert answer.json()["status"] == "queued"
    else:
        status, _ = problem(answer)
        assert status in (400, 404, 413, 422)
    await api.still_serves()


@settings(max_examples=60, deadline=None)
@given(ANY_JSON | NEARLY)
def test_any_json_gets_an_answer(built_app: BuiltApp, value: Any) -> None:
    asyncio.run(send(built_app, json.dumps(value).encode()))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.none() | st.binary(max_size=300))
def test_any_bytes_get_an_answer(built_app: BuiltApp, body: bytes, idempotency_key: bytes | None) -> None:
    asyncio.run(send(built_app, body, idempotency_key))
