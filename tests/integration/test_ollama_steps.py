"""The model steps against a scripted server: what they ask, what they give, what they report as used."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import ModelNotFoundError, ModelOutputError, StepInputError
from ai_task_orchestra.step_types import STEP_TYPES, kind_of
from ai_task_orchestra.testing.scripted_ollama import ScriptedModel, ScriptedOllama
from flows.steps.base import Step
from flows.steps.ollama_analyze import OllamaAnalyze
from flows.steps.ollama_chat import OllamaChat
from flows.steps.ollama_embed import OllamaEmbed
from flows.steps.ollama_generate import OllamaGenerate
from tests.support.ollama import step_context

MODEL = "smollm2:135m"
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
STEPS: list[Step] = [OllamaGenerate(), OllamaChat(), OllamaEmbed(), OllamaAnalyze()]
FIELDS: dict[str, dict[str, Any]] = {
    "ollama_generate": {"model": MODEL, "prompt": "hi", "format": "json"},
    "ollama_chat": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "format": "json"},
    "ollama_embed": {"model": MODEL, "input": ["a", "b"]},
    "ollama_analyze": {"model": MODEL, "content": "a report"},
}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOllama]:
    async with ScriptedOllama(models=[ScriptedModel(name=MODEL, text="Paris.", context_length=8192)]) as running:
        yield running


def bodies(server: ScriptedOllama, endpoint: str) -> list[dict[str, Any]]:
    return [request.body for request in server.requests if request.endpoint == endpoint]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.type)
async def test_a_step_gives_the_output_fields_that_its_type_declares(
    server: ScriptedOllama, tmp_path: Path, step: Step
) -> None:
    declared = STEP_TYPES[step.type].outputs
    given = await step.run(FIELDS[step.type], step_context(server, tmp_path))

    assert given.keys() == declared.keys()
    for name, value in given.items():
        assert kind_of(value) in declared[name] or (kind_of(value), "number") == ("integer", *declared[name])
    json.dumps(given)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.type)
async def test_a_step_reports_the_model_and_what_it_took(server: ScriptedOllama, tmp_path: Path, step: Step) -> None:
    context = step_context(server, tmp_path)
    await step.run(FIELDS[step.type], context)

    said = context.usage.as_dict()
    assert said["model_name"] == MODEL
    assert said["memory_used_gb"] == 0.1
    assert {"inference_time_seconds", "load_time_seconds", "prompt_tokens", "output_tokens"} <= said.keys()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.type)
async def test_a_model_that_is_not_there_fails_every_step_by_its_own_error(
    server: ScriptedOllama, tmp_path: Path, step: Step
) -> None:
    with pytest.raises(ModelNotFoundError):
        await step.run({**FIELDS[step.type], "model": "no-such:1b"}, step_context(server, tmp_path))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.type)
async def test_a_name_with_a_host_reaches_no_server(server: ScriptedOllama, tmp_path: Path, step: Step) -> None:
    with pytest.raises(StepInputError, match="model"):
        await step.run({**FIELDS[step.type], "model": "evil.host/x"}, step_context(server, tmp_path))
    assert server.requests == []


async def test_generate_hands_its_fields_on(server: ScriptedOllama, tmp_path: Path) -> None:
    pixel = base64.b64encode(b"pixel").decode()
    fields = {
        "model": MODEL,
        "prompt": "What is it?",
        "system": "Be brief.",
        "options": {"seed": 7, "temperature": 0},
        "keep_alive": "10m",
        "images": [pixel],
    }
    given = await OllamaGenerate().run(fields, step_context(server, tmp_path))

    assert given["output"] == "Paris."
    assert "parsed" not in given
    assert bodies(server, "generate") == [fields | {"stream": True}]


async def test_a_schema_is_handed_on_and_its_value_parsed(server: ScriptedOllama, tmp_path: Path) -> None:
    fields = {"model": MODEL, "prompt": "Who?", "format": PERSON}
    given = await OllamaGenerate().run(fields, step_context(server, tmp_path))

    assert given["parsed"] == {"name": "text"}
    assert json.loads(given["output"]) == given["parsed"]
    assert bodies(server, "generate")[0]["format"] == PERSON


async def test_a_bad_answer_in_a_chat_is_shown_to_the_model_for_repair(server: ScriptedOllama, tmp_path: Path) -> None:
    server.script(text="I think it is Maria.", times=1)
    fields = {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}], "format": PERSON}
    context = step_context(server, tmp_path)
    given = await OllamaChat().run(fields, context)

    assert given["parsed"] == {"name": "text"}
    said = bodies(server, "chat")[1]["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert said[1]["content"] == "I think it is Maria."
    assert len(context.usage.calls) == 2


async def test_an_answer_that_stays_bad_fails_the_step(server: ScriptedOllama, tmp_path: Path) -> None:
    server.script(text="I think it is Maria.")
    with pytest.raises(ModelOutputError, match="wanted form"):
        await OllamaGenerate().run({"model": MODEL, "prompt": "Who?", "format": PERSON}, step_context(server, tmp_path))
    assert len(bodies(server, "generate")) == 2


async def test_a_chat_returns_the_models_tool_calls(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
    able = ScriptedModel(name=MODEL, text="", capabilities=("completion", "tools"))
    async with ScriptedOllama(models=[able]) as server:
        server.script(tool_calls=[{"function": {"name": "look", "arguments": {"at": "map"}}}])
        fields = {"model": MODEL, "messages": [{"role": "user", "content": "Look."}], "tools": [tool]}
        given = await OllamaChat().run(fields, step_context(server, tmp_path))

    assert given["message"]["tool_calls"] == [{"function": {"name": "look", "arguments": {"at": "map"}}}]
    assert bodies(server, "chat")[0]["tools"][0]["function"]["name"] == "look"


async def test_embeddings_of_one_text_are_a_list_of_one(server: ScriptedOllama, tmp_path: Path) -> None:
    given = await OllamaEmbed().run({"model": MODEL, "input": "one"}, step_context(server, tmp_path))
    assert len(given["embeddings"]) == 1


async def test_analyze_puts_prompt_and_content_together(server: ScriptedOllama, tmp_path: Path) -> None:
    fields = {"model": MODEL, "prompt": "Count the words.", "content": {"words": ["é"]}, "max_tokens": 50}
    await OllamaAnalyze().run(fields, step_context(server, tmp_path))

    (body,) = bodies(server, "generate")
    assert body["prompt"] == '<content>\n{"words": ["é"]}\n</content>\n\nCount the words.'
    assert body["options"] == {"num_predict": 50}


async def test_analyze_keeps_the_loaded_context_and_cuts_what_no_context_holds(
    server: ScriptedOllama, tmp_path: Path
) -> None:
    context = step_context(server, tmp_path)
    first = await OllamaAnalyze().run({"model": MODEL, "content": "long " * 20_000}, context)
    second = await OllamaAnalyze().run({"model": MODEL, "content": "short"}, context)

    assert (first["truncated"], second["truncated"]) == (True, False)
    assert [body["options"]["num_ctx"] for body in bodies(server, "generate")] == [8192, 8192]
    assert server.statistics.loads == 1


@pytest.mark.parametrize("fields", [{"content": ""}, {"content": None}, {}, {"content": "x", "max_tokens": 0}])
async def test_analyze_without_content_or_room_asks_nobody(
    server: ScriptedOllama, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(StepInputError):
        await OllamaAnalyze().run({"model": MODEL, **fields}, step_context(server, tmp_path))
    assert server.requests == []


async def test_no_log_line_carries_prompt_or_answer(
    server: ScriptedOllama, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server.script(text="ANSWER-WORD", times=1, fault="status", status=503)
    server.script(endpoint="ps", fault="status", status=500)
    fields = {"model": MODEL, "prompt": "PROMPT-WORD"}
    await OllamaGenerate().run(fields, step_context(server, tmp_path))

    logged = " ".join(str(vars(record)) for record in caplog.records)
    assert "model_server_retry" in logged
    assert "PROMPT-WORD" not in logged
    assert "ANSWER-WORD" not in logged
