"""More models than fit: real runners under the scheduler's rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.model_backend import ModelBackend, model_backend
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def backend() -> Iterator[ModelBackend]:
    flags = ["--ctx", "256", "--threads", "1", "--max-loaded", "1", "--max-queue", "1"]
    with model_backend(*flags, models=["one", "two"]) as running:
        yield running


@pytest.fixture
async def client(backend: ModelBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=backend.url, timeout=60) as client:
        yield client


async def ask(client: httpx.AsyncClient, model: str, tokens: int = 2) -> httpx.Response:
    options = {"num_predict": tokens, "temperature": 0}
    body = {"model": model, "prompt": "Say hello.", "stream": False, "options": options}
    return await client.post("/api/generate", json=body)


async def loaded(client: httpx.AsyncClient) -> list[str]:
    return [model["name"] for model in (await client.get("/api/ps")).json()["models"]]


async def test_two_models_take_turns_where_one_fits(client: httpx.AsyncClient, backend: ModelBackend) -> None:
    texts = []
    for name in ["one", "two", "one"]:
        answer = (await ask(client, name)).json()
        assert answer["model"] == name
        assert answer["load_duration"] > 50_000_000
        assert await loaded(client) == [f"{name}:latest"]
        texts.append(answer["response"])
    assert len(set(texts)) == 1  # the same file under both names
    await wait_until(lambda: len(backend.runners()) == 1, description="one runner at most")


async def test_a_load_waits_for_a_busy_model_and_requests_beyond_the_queue_get_503(client: httpx.AsyncClient) -> None:
    async with client.stream(
        "POST", "/api/generate", json={"model": "one", "prompt": "A long story.", "options": {"num_predict": 3000}}
    ) as story:
        lines = story.aiter_lines()
        await anext(lines)
        waiting = [asyncio.create_task(ask(client, "two")) for _ in range(4)]  # one loads, one queues, two are refused
        await wait_until(lambda: [task for task in waiting if task.done()][1:], description="two refused")
        refused = [task.result() for task in waiting if task.done()]
        assert [answer.status_code for answer in refused] == [503, 503]
        assert refused[0].json()["error"].startswith("server busy, please try again.")
        assert await loaded(client) == ["one:latest"]
    answers = await asyncio.gather(*waiting)  # the story was left: its model goes, the waiting ones get theirs
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503]
    assert await loaded(client) == ["two:latest"]


async def test_requests_at_once_for_two_models_are_all_answered_when_the_queue_is_long_enough() -> None:
    flags = ["--ctx", "256", "--threads", "1", "--max-loaded", "1"]
    with model_backend(*flags, models=["one", "two"]) as backend:
        async with httpx.AsyncClient(base_url=backend.url, timeout=60) as client:
            answers = await asyncio.gather(*(ask(client, ["one", "two"][number % 2]) for number in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
