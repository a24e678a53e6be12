from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ai_task_orchestra.model_backend.protocol import (
    ChatRequest,
    EmbedRequest,
    GenerateRequest,
    Options,
    ProtocolError,
    parse,
    timestamp,
)


def generate(**fields: object) -> GenerateRequest:
    return parse(GenerateRequest, json.dumps({"model": "m", **fields}).encode())


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "missing request body"),
        (b"  ", "missing request body"),
        (b"{", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model": "m", "keep_alive": NaN}', "no JSON number"),
        (b'{"model": 5}', "model: "),
        (b'{"model": "m", "options": {"top_k": true}}', "options.top_k: "),
        (b'{"model": "m", "options": {"top_k": 1.5}}', "options.top_k: "),
        (b'{"model": "m", "prompt": ["a"]}', "prompt: "),
        (b'{"model": "m", "keep_alive": true}', "keep_alive"),
    ],
)
def test_a_body_that_can_not_be_used_is_400(raw: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        parse(GenerateRequest, raw)
    assert caught.value.status == 400


@pytest.mark.parametrize("wrong", ["yaml", 5, ["a"]])
def test_a_format_is_json_or_a_schema(wrong: object) -> None:
    with pytest.raises(ProtocolError, match="invalid format"):
        generate(format=wrong)
    assert generate(format="json").format == "json"
    assert generate(format={"type": "string"}).format == {"type": "string"}


def test_null_and_unknown_fields_are_as_if_not_given() -> None:
    request = generate(prompt=None, options=None, colour="blue", stream=None)
    assert (request.prompt, request.options, request.stream) == ("", None, None)


def test_whole_numbers_may_be_written_with_a_point_and_stop_as_one_word() -> None:
    options = generate(options={"top_k": 8.0, "stop": "end", "temperature": 1, "mirostat": 2}).options
    assert options is not None
    assert (options.top_k, options.stop, options.temperature) == (8, ["end"], 1.0)


def test_the_defaults_are_ollamas_but_for_what_the_model_needs() -> None:
    options = Options()
    assert (options.temperature, options.top_k, options.top_p, options.num_predict, options.repeat_penalty) == (
        0.2,
        40,
        0.9,
        -1,
        1.1,
    )


def test_a_model_must_be_named_and_the_older_field_counts() -> None:
    assert parse(GenerateRequest, b'{"name": "m"}').model_name == "m"
    with pytest.raises(ProtocolError, match="model is required"):
        _ = parse(ChatRequest, b'{"messages": []}').model_name


def test_an_embedding_takes_one_text_or_a_list_of_texts() -> None:
    assert parse(EmbedRequest, b'{"model": "m", "input": ["a", "b"]}').input == ["a", "b"]
    with pytest.raises(ProtocolError, match="input"):
        parse(EmbedRequest, b'{"model": "m", "input": [1]}')


def test_times_are_utc_with_a_z() -> None:
    moment = datetime(2026, 11, 24, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(moment) == "2026-11-23T23:00:00.000000Z"
    assert timestamp(datetime(2026, 1, 1, tzinfo=UTC)).endswith("Z")
