"""The routes, with a scripted engine behind the real scheduler."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from ai_task_orchestra.model_backend.app import create_app
from ai_task_orchestra.model_backend.engine import Finish
from ai_task_orchestra.model_backend.installed import Shelf
from ai_task_orchestra.model_backend.protocol import ProtocolError
from ai_task_orchestra.model_backend.scheduler import Limits, Scheduler
from tests.unit.model_backend.fakes import FakeEngine, FakeLauncher, installed


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    launcher = FakeLauncher(engine)
    scheduler: Scheduler[Any] = Scheduler(launcher.launch, Limits(context_length=64))
    shelf = Shelf([installed("one:latest"), installed("base:1", template="")])
    app = create_app(scheduler, shelf, lambda path: None)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:11434") as client:
        yield client
    await scheduler.close()


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await client.post(path, json={"model": "one", **body})


async def test_generate_streams_unless_told_otherwise(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/api/generate", prompt="hi")
    first, second, end = (json.loads(line) for line in answer.text.splitlines())
    assert (first["response"], second["response"], end["response"]) == ("Hel", "lo", "")
    assert {key: end[key] for key in ("done", "done_reason", "prompt_eval_count", "prompt_eval_duration")} == {
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 3,
        "prompt_eval_duration": 2_000_000,
    }
    whole = (await post(client, "/api/generate", prompt="hi", stream=False)).json()
    assert (whole["response"], whole["model"], whole["done"]) == ("Hello", "one", True)


async def test_counts_that_are_zero_are_left_out(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.says = [Finish("stop", 0, 0, 0, 0)]
    answer = (await post(client, "/api/generate", prompt="hi", stream=False)).json()
    assert not {"prompt_eval_count", "eval_count", "eval_duration"} & set(answer)
    assert answer["total_duration"] > 0


async def test_options_reach_the_engine_in_its_words(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    options = {"num_predict": 9, "temperature": 0, "stop": ["x"], "seed": 5, "num_keep": 2}
    await post(client, "/api/generate", prompt="hi", system="be", options=options)
    (payload,) = engine.payloads
    assert payload["prompt"] == "system:be;user:hi;"
    assert {key: payload[key] for key in ("n_predict", "temperature", "stop", "seed", "n_keep", "top_k")} == {
        "n_predict": 9,
        "temperature": 0,
        "stop": ["x"],
        "seed": 5,
        "n_keep": 2,
        "top_k": 40,
    }
    assert "json_schema" not in payload


async def test_an_open_end_is_one_context_and_no_answer_is_longer_than_ten(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await post(client, "/api/generate", prompt="hi")
    await post(client, "/api/generate", prompt="hi", options={"num_predict": 10**9})
    assert [payload["n_predict"] for payload in engine.payloads] == [64, 640]


async def test_without_shifting_the_answer_may_only_fill_the_context(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await post(client, "/api/generate", prompt="12345", raw=True, shift=False)
    assert engine.payloads[0]["n_predict"] == 64 - 5


async def test_raw_text_and_base_models_get_no_template(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await post(client, "/api/generate", prompt="once", raw=True)
    await post(client, "/api/generate", model="base:1", prompt="once", system="story")
    await post(client, "/api/chat", model="base:1", messages=[{"role": "user", "content": "upon"}])
    assert [payload["prompt"] for payload in engine.payloads] == ["once", "story\n\nonce", "upon"]


async def test_a_format_is_passed_on_lenient_and_json_means_an_object(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.says = ["{}"]
    await post(client, "/api/chat", messages=[{"role": "user", "content": "x"}], format="json")
    assert engine.payloads[0]["json_schema"] == {"type": "object", "x-guidance": {"lenient": True}}


async def test_free_text_where_a_format_was_asked_is_an_error(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    whole = await post(client, "/api/generate", prompt="x", format="json", stream=False)
    assert (whole.status_code, "enforce" in whole.json()["error"]) == (500, True)
    streamed = await post(client, "/api/generate", prompt="x", format="json")
    assert streamed.status_code == 200
    assert set(json.loads(streamed.text.splitlines()[-1])) == {"error"}


async def test_an_engine_that_breaks_in_the_middle_is_a_last_line(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.says = ["Hel", ProtocolError(500, "stopped")]
    answer = await post(client, "/api/chat", messages=[{"role": "user", "content": "x"}])
    assert [json.loads(line).get("error") for line in answer.text.splitlines()] == [None, "stopped"]
    assert engine.closed == 1


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("generate", {"prompt": "x", "think": True}, '"one" does not support thinking'),
        ("generate", {"prompt": "x", "suffix": "y"}, '"one" does not support insert'),
        ("generate", {"prompt": "x", "images": ["aGk="]}, '"one" does not support vision'),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "raw mode does not support"),
        ("generate", {"prompt": "x", "context": [1]}, "context are not supported"),
        ("generate", {"prompt": "x", "logprobs": True}, "logprobs are not supported"),
        ("generate", {"prompt": "x", "keep_alive": "soon"}, "invalid duration"),
        ("chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, '"one" does not support vision'),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, '"one" does not support tools'),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, '"one" does not support tools'),
        ("chat", {"messages": "hello"}, "messages"),
        ("embed", {"input": [["nested"]]}, "input"),
        ("show", {"model": ""}, "model is required"),
    ],
)
async def test_what_is_not_supported_is_400(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any], says: str
) -> None:
    answer = await client.post(f"/api/{path}", json={"model": "one", **body})
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert engine.payloads == []


async def test_think_false_is_no_wish(client: httpx.AsyncClient) -> None:
    assert (await post(client, "/api/generate", prompt="x", think=False)).status_code == 200


async def test_every_unknown_model_is_404_in_the_protocols_words(client: httpx.AsyncClient) -> None:
    for path in ("generate", "chat", "embed", "embeddings", "show"):
        answer = await client.post(f"/api/{path}", json={"model": "nope", "prompt": "x"})
        assert (answer.status_code, answer.json()) == (404, {"error": "model 'nope' not found"})


async def test_routes_that_are_not_here_are_errors_of_the_same_shape(client: httpx.AsyncClient) -> None:
    assert set((await client.post("/api/create", json={})).json()) == {"error"}
    assert (await client.get("/api/generate")).status_code == 405


async def test_vectors_are_cut_to_the_wanted_dimensions_and_stay_unit(client: httpx.AsyncClient) -> None:
    answer = (await post(client, "/api/embed", input=["a", "b"], dimensions=1)).json()
    assert answer["embeddings"] == [[1.0], [1.0]]
    assert (await post(client, "/api/embeddings", prompt="a")).json() == {"embedding": [0.6, 0.0, 0.8]}
    assert (await post(client, "/api/embeddings")).json() == {"embedding": []}


async def test_a_long_text_is_cut_or_refused(client: httpx.AsyncClient) -> None:
    answer = (await post(client, "/api/embed", input="x" * 100)).json()
    assert answer["prompt_eval_count"] == 62
    refused = await post(client, "/api/embed", input="x" * 100, truncate=False)
    assert (refused.status_code, "exceeds" in refused.json()["error"]) == (400, True)


async def test_names_without_a_tag_mean_latest_in_any_case(client: httpx.AsyncClient) -> None:
    for name in ("one", "ONE:latest", "one:latest"):
        assert (await client.post("/api/show", json={"model": name})).status_code == 200
    assert (await client.post("/api/show", json={"name": "base"})).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:11434"}, 200),
        ({"Host": "[::1]:11434"}, 200),
        ({"Host": "app.localhost"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "10.0.0.8"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[broken"}, 403),
    ],
)
async def test_only_this_machine_may_call(client: httpx.AsyncClient, headers: dict[str, str], status: int) -> None:
    assert (await client.get("/api/tags", headers=headers)).status_code == status


async def test_a_body_that_is_too_long_is_413(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ai_task_orchestra.model_backend.guard.MAX_BODY_BYTES", 100)
    answer = await post(client, "/api/generate", prompt="x" * 100)
    assert (answer.status_code, "100 bytes" in answer.json()["error"]) == (413, True)
