"""One suite for the scripted server and for a real engine behind Ollama's protocol: so the fake can't drift.

Whatever a test of the steps relies on when it talks to the scripted server holds for real answers, too.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ai_task_orchestra.errors import ModelError, ModelNotFoundError
from ai_task_orchestra.model_backend.model_file import MODEL_NAME
from ai_task_orchestra.testing.scripted_ollama import ScriptedModel, ServerSpec
from tests.support import servers
from tests.support.model_backend import model_backend
from tests.support.ollama import client_for
from tests.support.waiting import wait_until, wait_until_sync

MODEL = MODEL_NAME
QUIET = {"temperature": 0, "seed": 1, "num_predict": 8}
SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
DETAILS = {
    "parent_model": str,
    "format": str,
    "family": str,
    "families": [str],
    "parameter_size": str,
    "quantization_level": str,
}
NAMED = {"name": str, "model": str, "size": int, "digest": str, "details": DETAILS}
COUNTS = {
    "total_duration": int,
    "load_duration": int,
    "prompt_eval_count": int,
    "prompt_eval_duration": int,
    "eval_count": int,
    "eval_duration": int,
}


@dataclass(frozen=True)
class Server:
    """A running server of the protocol that has the model `MODEL`."""

    http: httpx.Client
    url: str

    def ask(self, endpoint: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/api/{endpoint}", json={"model": MODEL, **body})

    def value(self, endpoint: str, **body: Any) -> dict[str, Any]:
        response = self.ask(endpoint, **body)
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]

    def lines(self, endpoint: str, **body: Any) -> list[dict[str, Any]]:
        response = self.ask(endpoint, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("application/x-ndjson")
        assert response.text.endswith("\n")
        return [json.loads(line) for line in response.text.splitlines()]

    def loaded(self) -> list[dict[str, Any]]:
        return self.http.get("/api/ps").json()["models"]  # type: ignore[no-any-return]

    def unload(self) -> None:
        self.ask("generate", keep_alive=0).raise_for_status()
        wait_until_sync(lambda: not self.loaded(), description="nothing is loaded")


@contextmanager
def scripted(folder: Path) -> Iterator[str]:
    model = ScriptedModel(name=MODEL, text="word " * 400, load_seconds=0.2, tokens_per_second=400)
    (folder / "script.json").write_text(ServerSpec(models=(model,)).model_dump_json())
    port = servers.free_port()
    module = "ai_task_orchestra.testing.scripted_ollama"
    argv = [sys.executable, "-m", module, "--port", str(port), "--script", str(folder / "script.json")]
    with servers.process(argv, log=folder / "log"):
        wait_until_sync(lambda: "listening" in (folder / "log").read_text(), description="the server listens")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def embedded() -> Iterator[str]:
    with model_backend("--threads", "1") as backend:
        yield backend.url


@pytest.fixture(scope="module", params=["scripted", "embedded"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    opened = scripted(tmp_path_factory.mktemp("scripted")) if request.param == "scripted" else embedded()
    with opened as url, httpx.Client(base_url=url, timeout=60) as http:
        yield Server(http, url)


def differences(value: Any, shape: Any, where: str = "$") -> list[str]:
    """What of `value` is missing or of another type than `shape` says; further fields are allowed."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where}: no object"]
        missing = [f"{where}.{name}: missing" for name in shape if name not in value]
        return missing + [
            d for name in shape if name in value for d in differences(value[name], shape[name], f"{where}.{name}")
        ]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [d for index, item in enumerate(value) for d in differences(item, shape[0], f"{where}[{index}]")]
    return [] if type(value) is shape or (shape is float and type(value) is int) else [f"{where}: {type(value)}"]


def moment(text: str) -> datetime:
    """A time as Go writes it: with up to nine digits of a second."""
    head, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :] if rest else ""
    return datetime.fromisoformat(f"{head}.{digits[:6]:0<6}{zone}" if rest else head)


def test_it_says_that_it_runs_and_its_version(server: Server) -> None:
    assert server.http.get("/").text.startswith("Ollama is running")
    assert differences(server.http.get("/api/version").json(), {"version": str}) == []


def test_unknown_paths_are_404(server: Server) -> None:
    assert server.http.get("/api/nothing").status_code == 404
    assert server.http.get("/nothing").status_code == 404


def test_models_are_listed(server: Server) -> None:
    listed = server.http.get("/api/tags").json()
    assert differences(listed, {"models": [NAMED | {"modified_at": str}]}) == []
    assert MODEL in [model["name"] for model in listed["models"]]
    for model in listed["models"]:
        moment(model["modified_at"])
        assert len(model["digest"].removeprefix("sha256:")) == 64


def test_a_model_is_described(server: Server) -> None:
    described = server.value("show")
    shape = {"details": DETAILS, "model_info": {"general.architecture": str}, "capabilities": [str]}
    assert differences(described, shape) == []
    family = described["model_info"]["general.architecture"]
    assert described["model_info"][f"{family}.context_length"] > 0
    assert "completion" in described["capabilities"]


def test_what_is_loaded_is_listed_with_its_size(server: Server) -> None:
    server.unload()
    server.value("generate", prompt="hi", options=QUIET, stream=False)
    (entry,) = server.loaded()
    assert differences(entry, NAMED | {"expires_at": str, "size_vram": int, "context_length": int}) == []
    assert entry["name"] == entry["model"] == MODEL
    assert 0 <= entry["size_vram"] <= entry["size"]
    assert entry["size"] > 0
    assert moment(entry["expires_at"]) > datetime.now(UTC)


def test_a_generation_streams_lines_and_ends_with_the_counts(server: Server) -> None:
    *parts, last = server.lines("generate", prompt="Say something.", options=QUIET)
    assert parts
    for part in parts:
        assert differences(part, {"model": str, "created_at": str, "response": str, "done": bool}) == []
        assert (part["model"], part["done"]) == (MODEL, False)
        moment(part["created_at"])
    assert differences(last, COUNTS | {"done": bool, "done_reason": str, "response": str}) == []
    assert last["done"]
    assert last["total_duration"] >= last["eval_duration"] > 0
    assert 0 < last["eval_count"] <= QUIET["num_predict"]


def test_a_generation_at_its_limit_ends_for_length(server: Server) -> None:
    answer = server.value("generate", prompt="Count to a hundred.", options={**QUIET, "num_predict": 3}, stream=False)
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 3)


def test_a_whole_generation_is_the_stream_in_one(server: Server) -> None:
    answer = server.value("generate", prompt="Say something.", options=QUIET, stream=False)
    lines = server.lines("generate", prompt="Say something.", options=QUIET)
    assert differences(answer, COUNTS | {"model": str, "created_at": str, "response": str, "done_reason": str}) == []
    assert answer["done"] is True
    assert answer["response"] == "".join(line["response"] for line in lines)


def test_a_chat_streams_messages(server: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    *parts, last = server.lines("chat", messages=messages, options=QUIET)
    assert parts
    for part in parts:
        assert differences(part, {"model": str, "message": {"role": str, "content": str}, "done": bool}) == []
        assert (part["message"]["role"], part["done"]) == ("assistant", False)
    assert differences(last, COUNTS | {"message": {"role": str, "content": str}, "done_reason": str}) == []
    assert last["done"]


def test_embeddings_are_one_vector_per_text(server: Server) -> None:
    both = server.value("embed", input=["hello", "world"])
    one = server.value("embed", input="world")
    shape = {"embeddings": [[float]], "total_duration": int, "load_duration": int, "prompt_eval_count": int}
    assert differences(both, shape) == []
    assert [len(both["embeddings"]), len(one["embeddings"])] == [2, 1]
    assert len({len(vector) for vector in both["embeddings"] + one["embeddings"]}) == 1
    assert both["embeddings"][1] == pytest.approx(one["embeddings"][0], abs=0.02)
    assert sum(value * value for value in one["embeddings"][0]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("endpoint", ["generate", "chat"])
def test_an_answer_has_the_format_of_the_schema(server: Server, endpoint: str) -> None:
    question = "Name a colour as JSON."
    asked = {"prompt": question} if endpoint == "generate" else {"messages": [{"role": "user", "content": question}]}
    answer = server.value(endpoint, **asked, format=SCHEMA, stream=False, options={**QUIET, "num_predict": 60})
    text = answer["response"] if endpoint == "generate" else answer["message"]["content"]
    assert isinstance(json.loads(text)["colour"], str)


def test_an_answer_in_json_is_json(server: Server) -> None:
    answer = server.value(
        "generate", prompt="Name a colour as JSON.", format="json", stream=False, options={**QUIET, "num_predict": 80}
    )
    if answer["done_reason"] == "stop":
        json.loads(answer["response"])
    else:  # a small model may not come to an end; what it wrote still began as JSON
        assert answer["response"].lstrip()[:1] in ("{", "[")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("generate", {"prompt": "hi"}),
        ("chat", {"messages": [{"role": "user", "content": "hi"}]}),
        ("embed", {"input": "hi"}),
        ("show", {}),
    ],
)
def test_a_model_that_is_not_there_is_404(server: Server, endpoint: str, asked: dict[str, Any], stream: bool) -> None:
    response = server.ask(endpoint, **asked, model="no-such:7b", stream=stream)
    assert response.status_code == 404
    error = response.json()["error"]
    assert "no-such:7b" in error
    assert "not found" in error


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"'])
def test_a_body_that_is_no_object_is_400(server: Server, body: bytes) -> None:
    response = server.http.post("/api/generate", content=body)
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize("asked", [{"keep_alive": "soon"}, {"think": True}])
def test_fields_that_can_not_be_honoured_are_400(server: Server, asked: dict[str, Any]) -> None:
    response = server.ask("chat", messages=[{"role": "user", "content": "hi"}], **asked)
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize("endpoint", ["generate", "chat"])
def test_an_empty_request_loads_and_with_keep_alive_0_unloads(server: Server, endpoint: str) -> None:
    server.unload()
    loaded = server.value(endpoint, keep_alive="10m", stream=False)
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    assert len(server.loaded()) == 1
    unloaded = server.value(endpoint, keep_alive=0, stream=False)
    assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
    wait_until_sync(lambda: not server.loaded(), description="nothing is loaded")


def test_a_model_expires_after_its_keep_alive(server: Server) -> None:
    server.value("generate", prompt="hi", options=QUIET, keep_alive=0.3, stream=False)
    wait_until_sync(lambda: not server.loaded(), timeout=10, description="the model expired")


def test_a_negative_keep_alive_is_for_ever(server: Server) -> None:
    server.value("generate", prompt="hi", options=QUIET, keep_alive=-1, stream=False)
    assert moment(server.loaded()[0]["expires_at"]).year > 2300
    server.unload()


def test_loading_takes_time_once_and_again_for_another_context(server: Server) -> None:
    server.unload()
    cold = server.value("generate", prompt="hi", options=QUIET, stream=False)
    warm = server.value("generate", prompt="hi", options=QUIET, stream=False)
    assert cold["load_duration"] > 100_000_000 > warm["load_duration"]
    other = server.value("generate", prompt="hi", options={**QUIET, "num_ctx": 1024}, stream=False)
    assert other["load_duration"] > 100_000_000
    assert server.loaded()[0]["context_length"] == 1024
    server.unload()


def test_a_client_that_leaves_frees_the_slot(server: Server) -> None:
    story = {"model": MODEL, "prompt": "Tell a very long story.", "options": {"num_predict": 2000}}
    with server.http.stream("POST", "/api/generate", json=story) as response:
        next(response.iter_lines())
    began = time.monotonic()
    server.value("generate", prompt="hi", options={**QUIET, "num_predict": 1}, stream=False)
    assert time.monotonic() - began < 3


def test_pulling_ends_in_success_or_an_error_line(server: Server) -> None:
    assert server.lines("pull")[-1] == {"status": "success"}
    assert isinstance(server.lines("pull", model="no-such:7b")[-1]["error"], str)


async def test_our_client_gets_whole_answers_with_their_usage(server: Server) -> None:
    async with client_for(server.url, first_token_timeout_seconds=60) as client:
        generated = await client.generate(model=MODEL, prompt="Say something.", options=QUIET)
        chatted = await client.chat(
            model=MODEL, messages=[{"role": "user", "content": "Say something."}], options=QUIET
        )
        vectors, embedded = await client.embed(model=MODEL, texts=["one", "two"])
        assert (await client.context_length(MODEL) or 0) > 0

    assert generated.text
    assert chatted.message["content"] == chatted.text
    assert len(vectors) == 2
    for call in (generated.call, chatted.call, embedded):
        assert (call.memory_bytes or 0) > 0
        assert call.prompt_tokens > 0
        assert 0 < call.evaluation_seconds < 60
    assert 0 < generated.call.output_tokens <= QUIET["num_predict"]


async def test_our_client_names_a_model_that_is_not_there(server: Server) -> None:
    async with client_for(server.url) as client:
        with pytest.raises(ModelNotFoundError, match="no-such:7b"):
            await client.generate(model="no-such:7b", prompt="hi")
        with pytest.raises(ModelNotFoundError, match="no-such:7b"):
            await client.embed(model="no-such:7b", texts="hi")
        with pytest.raises(ModelError) as caught:
            await client.generate(model=MODEL, prompt="hi", keep_alive="soon")
    assert not caught.value.retryable


async def test_our_client_ends_a_generation_that_is_cancelled(server: Server) -> None:
    async with client_for(server.url, first_token_timeout_seconds=60) as client:
        story = asyncio.create_task(
            client.generate(model=MODEL, prompt="Tell a very long story.", options={"num_predict": 2000})
        )
        await wait_until(lambda: bool(server.loaded()), description="the model is loaded")
        story.cancel()
        with pytest.raises(asyncio.CancelledError):
            await story
        began = time.monotonic()
        await client.generate(model=MODEL, prompt="hi", options={"num_predict": 1})
        assert time.monotonic() - began < 3
