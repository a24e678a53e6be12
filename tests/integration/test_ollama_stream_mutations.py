"""Bytes of an answer damaged at random: never a partial answer taken as whole, never a foreign exception."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai_task_orchestra.errors import ModelError, ModelOutputError
from ai_task_orchestra.testing.scripted_ollama import ScriptedModel, ScriptedOllama
from flows.clients.ollama_answer import ModelAnswer
from tests.support.ollama import client_for

MODEL = "smollm2:135m"
PIECES = ["The", " capital", " är\u2028", ' "Paris"', "."]
LAST = {"done": True, "done_reason": "stop", "total_duration": 9, "prompt_eval_count": 4, "eval_count": 5}
LINES = [*({"model": MODEL, "response": piece, "done": False} for piece in PIECES), {"response": "", **LAST}]
STREAM = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in LINES)
# A line that ends without a line feed is whole all the same.
WHOLE_FROM = len(STREAM) - 1

Mutation = tuple[int, int, bytes]
MUTATIONS = st.lists(
    st.tuples(st.integers(0, len(STREAM)), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=3
)


class Loop:
    """A scripted server with an event loop that lives as long as a test: hypothesis calls plain functions."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.server = ScriptedOllama(models=[ScriptedModel(name=MODEL)])
        self.runner.run(self.server.__aenter__())

    def answer_to(self, body: bytes) -> ModelAnswer:
        return self.runner.run(self._answer_to(body))

    async def _answer_to(self, body: bytes) -> ModelAnswer:
        self.server.clear_scripts()
        self.server.script(endpoint="generate", fault="body", body=body)
        async with client_for(self.server) as client:
            return await client.generate(model=MODEL, prompt="hi")

    def close(self) -> None:
        self.runner.run(self.server.__aexit__())
        self.runner.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


def text_of(stream: bytes) -> str | None:
    """What a whole stream says, read independently of the client; None if it is not whole."""
    text = ""
    for line in stream.decode("utf-8", "replace").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("error"):
            return None
        text += value.get("response") or ""
        if value.get("done") is True or str(value.get("done")).lower() in ("1", "1.0", "t", "true", "y", "yes", "on"):
            return text
    return None


def damaged(mutations: list[Mutation]) -> bytes:
    data = bytearray(STREAM)
    for position, removed, inserted in mutations:
        data[position : position + removed] = inserted
    return bytes(data)


def test_the_undamaged_stream_is_the_whole_answer(loop: Loop) -> None:
    assert loop.answer_to(STREAM).text == "".join(PIECES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, WHOLE_FROM - 1))
def test_the_beginning_of_an_answer_is_never_an_answer(loop: Loop, length: int) -> None:
    with pytest.raises(ModelOutputError) as caught:
        loop.answer_to(STREAM[:length])
    assert caught.value.retryable


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=MUTATIONS)
def test_a_damaged_answer_is_refused_unless_what_is_left_is_whole(loop: Loop, mutations: list[Mutation]) -> None:
    data = damaged(mutations)
    try:
        answer = loop.answer_to(data)
    except ModelError as exc:
        assert len(exc.message) < 400
    else:
        assert answer.text == text_of(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=400))
def test_noise_is_never_an_answer(loop: Loop, body: bytes) -> None:
    with pytest.raises(ModelError):
        loop.answer_to(body)
