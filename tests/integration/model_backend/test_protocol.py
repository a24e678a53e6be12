"""What the official Ollama client sees of the embedded backend, with the real model."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing

import httpx
import ollama
import pytest

from tests.support.model_backend import ModelBackend
from tests.support.waiting import wait_until

MODEL = "smollm2:135m"
FRANCE = "What is the capital of France? Answer in one sentence."
EXACT = {"temperature": 0, "seed": 1, "num_predict": 24}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
Client = ollama.AsyncClient


def turn(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def test_the_model_is_listed_with_its_digest_and_details(client: Client) -> None:
    (model,) = (await client.list()).models
    assert model.model == MODEL
    assert model.digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert model.details is not None
    assert (model.details.family, model.details.quantization_level) == ("llama", "Q4_1")


async def test_show_says_what_the_model_is_and_what_serves_it(client: Client) -> None:
    shown = await client.show(MODEL)
    assert shown.license == "apache-2.0"
    assert shown.capabilities == ["completion", "embedding"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert "embedded model backend" in (shown.modelfile or "")
    assert "can't do sums" in (shown.modelfile or "")


def test_the_version_says_that_it_is_embedded(backend: ModelBackend) -> None:
    assert httpx.get(f"{backend.url}/api/version").json()["version"].endswith("-embedded")
    assert httpx.head(backend.url).status_code == 200


async def test_a_cold_answer_carries_counts_and_the_time_of_loading_in_nanoseconds(cold: Client) -> None:
    answer = await cold.generate(MODEL, FRANCE, options=EXACT)
    assert "Paris" in (answer.response or "")
    assert answer.done_reason == "stop"
    assert answer.load_duration is not None
    assert answer.load_duration > 50_000_000
    assert answer.total_duration is not None
    assert answer.total_duration > answer.load_duration
    assert answer.prompt_eval_count == 42
    assert answer.eval_count is not None
    assert answer.eval_count > 0


async def test_a_warm_answer_does_not_load_again(client: Client) -> None:
    await client.generate(MODEL, keep_alive="5m")
    answer = await client.generate(MODEL, FRANCE, options=EXACT)
    assert (answer.load_duration or 0) < 50_000_000
    assert answer.eval_duration is not None


async def test_ps_shows_memory_context_and_expiry_of_a_loaded_model(cold: Client) -> None:
    await cold.generate(MODEL, keep_alive="10m")
    (loaded,) = (await cold.ps()).models
    assert loaded.model == MODEL
    assert (loaded.size or 0) > 100_000_000
    assert (loaded.size_vram, loaded.context_length) == (0, 256)
    assert loaded.expires_at is not None
    assert 590 < loaded.expires_at.timestamp() - time.time() <= 600


async def test_the_same_seed_gives_the_same_text_and_num_predict_ends_it(client: Client) -> None:
    options = {"temperature": 1.0, "seed": 7, "num_predict": 8}
    first = await client.generate(MODEL, "Name a colour.", options=options)
    second = await client.generate(MODEL, "Name a colour.", options=options)
    other = await client.generate(MODEL, "Name a colour.", options={**options, "seed": 8})
    assert first.response == second.response != other.response
    assert (first.done_reason, first.eval_count) == ("length", 8)


async def test_a_stop_word_ends_the_text_before_it(client: Client) -> None:
    answer = await client.generate(MODEL, "Count: 1, 2,", raw=True, options={**EXACT, "stop": ["5"]})
    assert answer.done_reason == "stop"
    assert "4" in (answer.response or "")
    assert "5" not in (answer.response or "")


async def test_the_system_prompt_reaches_the_model(client: Client) -> None:
    plain = await client.generate(MODEL, "Who are you?", options=EXACT)
    pirate = await client.generate(MODEL, "Who are you?", system="You are a pirate. Talk like one.", options=EXACT)
    assert plain.response != pirate.response
    assert (pirate.prompt_eval_count, plain.prompt_eval_count) != (None, pirate.prompt_eval_count)


async def test_a_stream_ends_with_one_record_that_is_done(client: Client) -> None:
    pieces = [piece async for piece in await client.generate(MODEL, "Count from 1 to 5.", stream=True, options=EXACT)]
    assert len(pieces) > 3
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    whole = await client.generate(MODEL, "Count from 1 to 5.", options=EXACT)
    assert "".join(piece.response or "" for piece in pieces) == whole.response


async def test_chat_answers_as_the_assistant_streamed_or_whole(client: Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, turn("Say hello.")]
    whole = await client.chat(MODEL, messages, options=EXACT)
    assert whole.message.role == "assistant"
    assert whole.message.content
    pieces = [piece async for piece in await client.chat(MODEL, messages, stream=True, options=EXACT)]
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done


async def test_a_json_schema_is_enforced(client: Client) -> None:
    text = turn("Extract name and age: Maria, 34 years old.")
    answer = await client.chat(MODEL, [text], format=PERSON, options={"temperature": 0, "num_predict": 60})
    assert json.loads(answer.message.content or "") == {"name": "Maria", "age": 34}


async def test_keywords_unknown_to_the_engine_do_not_switch_the_schema_off(client: Client) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 2, "uniqueItems": True}
    answer = await client.chat(MODEL, [turn("Name two colours.")], format=schema, options={"temperature": 0})
    assert set(json.loads(answer.message.content or "")) <= {"red", "blue"}


async def test_format_json_gives_an_object(client: Client) -> None:
    text = "Extract name and age as JSON: Maria, 34 years old."
    answer = await client.generate(MODEL, text, format="json", options={"temperature": 0, "num_predict": 80})
    assert isinstance(json.loads(answer.response or ""), dict)


async def test_a_schema_that_is_none_is_refused(client: Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat(MODEL, [turn("hi")], format={"type": "nonsense"})
    assert caught.value.status_code == 400
    assert "nonsense" in caught.value.error


async def test_a_schema_the_engine_can_not_compile_is_an_error_and_no_free_text(client: Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat(
            MODEL, [turn("Say yes.")], format={"type": "string", "pattern": "("}, options={"temperature": 0}
        )
    assert "could not enforce" in caught.value.error


async def test_raw_text_is_continued_without_a_template(client: Client) -> None:
    options = {"temperature": 0, "num_predict": 6}
    answer = await client.generate(MODEL, "The capital of France is", raw=True, options=options)
    assert "Paris" in (answer.response or "")
    assert (answer.prompt_eval_count or 0) < 10


async def test_texts_become_unit_vectors_and_near_ones_for_near_texts(client: Client) -> None:
    answer = await client.embed(MODEL, ["a small dog", "a little dog", "the national budget of 1987"])
    one, two, three = answer.embeddings
    assert len(one) == 576
    assert sum(value * value for value in one) == pytest.approx(1, abs=1e-3)
    assert sum(a * b for a, b in zip(one, two, strict=True)) > sum(a * b for a, b in zip(one, three, strict=True))


async def test_one_text_none_and_the_older_call_are_embedded_too(client: Client) -> None:
    assert len((await client.embed(MODEL, "hi")).embeddings) == 1
    assert (await client.embed(MODEL, "")).embeddings == []
    assert len((await client.embeddings(MODEL, "hi")).embedding) == 576
    assert len((await client.embed(MODEL, "hi", dimensions=32)).embeddings[0]) == 32


async def test_a_long_text_is_cut_before_embedding_unless_that_is_forbidden(client: Client) -> None:
    text = "word " * 400
    assert len((await client.embed(MODEL, text)).embeddings) == 1
    with pytest.raises(ollama.ResponseError) as caught:
        await client.embed(MODEL, text, truncate=False)
    assert caught.value.status_code == 400


async def test_an_empty_prompt_loads_and_with_keep_alive_0_unloads(cold: Client) -> None:
    loaded = await cold.generate(MODEL)
    assert (loaded.done_reason, len((await cold.ps()).models)) == ("load", 1)
    unloaded = await cold.chat(MODEL, [], keep_alive=0)
    assert (unloaded.done_reason, (await cold.ps()).models) == ("unload", [])


async def test_an_idle_model_goes_when_its_keep_alive_is_over(cold: Client) -> None:
    await cold.generate(MODEL, "hi", options={"num_predict": 1}, keep_alive="300ms")

    async def gone() -> bool:
        return not (await cold.ps()).models

    await wait_until(gone, timeout=5, description="expired model gone")


async def test_a_negative_keep_alive_means_for_ever(cold: Client) -> None:
    await cold.generate(MODEL, keep_alive=-1)
    (loaded,) = (await cold.ps()).models
    assert loaded.expires_at is not None
    assert loaded.expires_at.year > 2300


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model_is_404_before_any_stream(client: Client, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        if stream:
            _ = [piece async for piece in await client.generate("nope", "x", stream=True)]
        else:
            await client.generate("nope", "x")
    assert (caught.value.status_code, caught.value.error) == (404, "model 'nope' not found")


async def test_what_the_model_can_not_do_is_refused(client: Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    requests = {
        "thinking": client.chat(MODEL, [turn("hi")], think=True),
        "tools": client.chat(MODEL, [turn("hi")], tools=[tool]),
        "vision": client.generate(MODEL, "hi", images=[b"\x89PNG"]),
        "insert": client.generate(MODEL, "hi", suffix="end"),
    }
    for capability, request in requests.items():
        with pytest.raises(ollama.ResponseError, match=f"does not support {capability}") as caught:
            await request
        assert caught.value.status_code == 400


async def test_a_long_chat_loses_its_oldest_messages_but_not_the_system_prompt(client: Client) -> None:
    padding = [turn("Nothing to see here. " * 10), {"role": "assistant", "content": "Fine. " * 10}] * 4
    messages = [{"role": "system", "content": "Be brief."}, *padding, turn(FRANCE)]
    answer = await client.chat(MODEL, messages, options=EXACT)
    assert answer.message.content
    assert (answer.prompt_eval_count or 0) < 256


async def test_a_prompt_longer_than_the_context_is_cut_and_still_answered(client: Client) -> None:
    answer = await client.generate(MODEL, "word " * 400, options={**EXACT, "num_predict": 4})
    assert answer.done
    assert 100 < (answer.prompt_eval_count or 0) < 256


@pytest.mark.parametrize("forbidden", [{"truncate": False}, {"shift": False}])
def test_a_prompt_that_may_not_be_cut_is_refused(backend: ModelBackend, forbidden: dict[str, bool]) -> None:
    body = {"model": MODEL, "messages": [turn("word " * 400)], **forbidden}
    answer = httpx.post(f"{backend.url}/api/chat", json=body, timeout=60)
    assert answer.status_code == 400
    assert "context" in answer.json()["error"]


def test_without_shifting_an_answer_ends_with_the_context(backend: ModelBackend) -> None:
    body = {"model": MODEL, "prompt": "one two", "raw": True, "shift": False, "stream": False}
    options = {"num_ctx": 64, "temperature": 0, "num_predict": 100}
    shifted = {**body, "shift": True, "options": options}
    longer = httpx.post(f"{backend.url}/api/generate", json=shifted, timeout=60).json()
    assert longer["prompt_eval_count"] + longer["eval_count"] > 64  # or this prompt would prove nothing
    answer = httpx.post(f"{backend.url}/api/generate", json={**body, "options": options}, timeout=60).json()
    assert answer["done_reason"] == "length"
    assert answer["prompt_eval_count"] + answer["eval_count"] == 64


async def test_another_context_length_reloads_the_model(cold: Client) -> None:
    await cold.generate(MODEL)
    answer = await cold.generate(MODEL, "hi", options={"num_ctx": 128, "num_predict": 1})
    assert (answer.load_duration or 0) > 50_000_000
    assert [model.context_length for model in (await cold.ps()).models] == [128]


async def test_requests_at_once_are_all_answered(client: Client) -> None:
    prompts = [f"Say {number}." for number in range(4)]
    options = {**EXACT, "num_predict": 6}
    answers = await asyncio.gather(*(client.chat(MODEL, [turn(text)], options=options) for text in prompts))
    assert all(answer.done for answer in answers)


async def test_a_caller_that_hangs_up_frees_the_slot(client: Client) -> None:
    await client.generate(MODEL)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.generate(MODEL, "Write a long story.", options={"num_predict": 4000}), 0.5)
    began = time.monotonic()
    await client.generate(MODEL, "hi", options={"num_predict": 1})
    assert time.monotonic() - began < 10  # the story would take much longer


async def test_a_stream_that_is_left_frees_the_slot(client: Client) -> None:
    stream = await client.generate(MODEL, "Write a long story.", stream=True, options={"num_predict": 4000})
    async with aclosing(stream) as pieces:  # type: ignore[type-var]
        await anext(pieces)
    began = time.monotonic()
    await client.generate(MODEL, "hi", options={"num_predict": 1})
    assert time.monotonic() - began < 10  # the story would take much longer


async def test_pulling_what_is_there_succeeds_and_anything_else_is_an_error_line(client: Client) -> None:
    statuses = [step.status async for step in await client.pull(MODEL, stream=True)]
    assert (statuses[0], statuses[-1]) == ("pulling manifest", "success")
    with pytest.raises(ollama.ResponseError, match="file does not exist") as caught:
        _ = [step async for step in await client.pull("nope", stream=True)]
    assert caught.value.status_code == -1  # the client's way to say: in the middle of a stream
    with pytest.raises(ollama.ResponseError) as caught:
        await client.pull("nope")
    assert caught.value.status_code == 500


def test_a_wrong_option_is_refused_by_name(backend: ModelBackend) -> None:
    body = {"model": MODEL, "prompt": "hi", "options": {"temperature": "hot"}}
    answer = httpx.post(f"{backend.url}/api/generate", json=body)
    assert answer.status_code == 400
    assert "options.temperature" in answer.json()["error"]
    assert "hot" not in answer.text
