"""Bodies that must be refused with a clear error; after each one the API still serves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.api_app import INFERENCE, ApiUnderTest, problem

VALID: dict[str, Any] = {"template": "ollama-inference", "parameters": INFERENCE}


def with_fields(**fields: Any) -> bytes:
    return json.dumps(VALID | fields).encode()


def with_text(text: str) -> bytes:
    """A prompt written exactly so inside its quotes."""
    return b'{"template":"ollama-inference","parameters":{"model":"m","prompt":"' + text.encode() + b'"}}'


def with_value(value: str) -> bytes:
    """A parameter written exactly so."""
    return b'{"template":"every-type","parameters":{"seconds":1,"options":{"x":' + value.encode() + b"}}}"


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "malformed_json"),
    "half an object": (b'{"template":', 400, "malformed_json"),
    "trailing comma": (b'{"template":"x","parameters":{},}', 400, "malformed_json"),
    "byte order mark": (b"\xef\xbb\xbf" + with_fields(), 400, "malformed_json"),
    "UTF-16": (with_fields().decode().encode("utf-16"), 400, "malformed_json"),
    "UTF-32": (with_fields().decode().encode("utf-32"), 400, "malformed_json"),
    "Latin-1": ('{"template":"ü","parameters":{}}'.encode("latin-1"), 400, "malformed_json"),
    "NaN": (with_value("NaN"), 400, "non_finite_number"),
    "Infinity": (with_value("-Infinity"), 400, "non_finite_number"),
    "too large for a double": (with_value("1e999"), 400, "non_finite_number"),
    "a name twice": (b'{"template":"a","template":"b","parameters":{}}', 400, "duplicate_key"),
    "a parameter twice": (with_value('{"y":1,"y":2}'), 400, "duplicate_key"),
    "lone surrogate": (with_text(r"\ud800"), 422, "invalid_text"),
    "lone surrogate in a name": (with_value(r'{"\udc00":1}'), 422, "invalid_text"),
    "NUL": (with_text(r"\u0000"), 422, "invalid_text"),
    "NUL in the template's name": (b'{"template":"\\u0000","parameters":{}}', 422, "invalid_text"),
    "integer of 64 bits and one": (with_value(str(2**63)), 422, "out_of_range"),
    "integer of 5000 digits": (with_value("9" * 5000), 422, "out_of_range"),
    "65 levels": (with_value("[" * 62 + "]" * 62), 422, "too_deep"),
    "900 levels": (with_value("[" * 900 + "]" * 900), 422, "too_deep"),
    "100,000 levels": (b"[" * 100_000 + b"]" * 100_000, 422, "too_deep"),
    "too many parameters": (with_value('"' + "x" * (600 * 1024) + '"'), 400, "parameters_too_large"),
    "no object": (b"[]", 422, "validation_error"),
    "null": (b"null", 422, "validation_error"),
    "a text": (b'"text"', 422, "validation_error"),
    "no template": (b'{"parameters":{}}', 422, "validation_error"),
    "no parameters": (b'{"template":"ollama-inference"}', 422, "validation_error"),
    "parameters null": (with_fields(parameters=None), 422, "validation_error"),
    "parameters a list": (with_fields(parameters=[]), 422, "validation_error"),
    "template a number": (with_fields(template=5), 422, "validation_error"),
    "unknown field": (with_fields(pirority=9), 422, "validation_error"),
    "priority 0": (with_fields(priority=0), 422, "validation_error"),
    "priority 11": (with_fields(priority=11), 422, "validation_error"),
    "priority -1": (with_fields(priority=-1), 422, "validation_error"),
    "priority 5.5": (with_fields(priority=5.5), 422, "validation_error"),
    "priority 5.0": (with_fields(priority=5.0), 422, "validation_error"),
    "priority true": (with_fields(priority=True), 422, "validation_error"),
    "priority text": (with_fields(priority="5"), 422, "validation_error"),
    "priority null": (with_fields(priority=None), 422, "validation_error"),
    "depends_on text": (with_fields(depends_on="x"), 422, "validation_error"),
    "depends_on null": (with_fields(depends_on=None), 422, "validation_error"),
    "depends_on numbers": (with_fields(depends_on=[2**62]), 422, "validation_error"),
    "depends_on lists": (with_fields(depends_on=[["x"]]), 422, "validation_error"),
    "depends_on an object": (with_fields(depends_on={"x": 1}), 422, "validation_error"),
    "another policy": (with_fields(on_dependency_failure="retry"), 422, "validation_error"),
    "policy null": (with_fields(on_dependency_failure=None), 422, "validation_error"),
    "parameter of another type": (with_fields(parameters={"model": True, "prompt": []}), 400, "invalid_parameters"),
    "parameter null": (with_fields(parameters={"model": None, "prompt": "x"}), 400, "invalid_parameters"),
    "parameter missing": (with_fields(parameters={}), 400, "invalid_parameters"),
    "a huge unknown name": (with_fields(parameters=INFERENCE | {"x" * 100_000: 1}), 400, "invalid_parameters"),
    "a huge unknown field": (with_fields(**{"y" * 100_000: 1}), 422, "validation_error"),
}


@pytest.fixture
async def serving(api: ApiUnderTest) -> AsyncIterator[ApiUnderTest]:
    """The API; afterwards it must still serve and hold nothing of what was refused."""
    yield api
    await api.still_serves()
    assert api.tasks.tasks == {}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_body_is_refused_with_a_clear_error(serving: ApiUnderTest, name: str) -> None:
    body, status, code = REFUSED[name]
    answer = await serving.raw(body)
    assert problem(answer) == (status, code)
    assert len(answer.content) < 5000


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=",
        "application/json-patch+json",
        "application/problem+json",
        "application/jsonx",
        "application/json, text/plain",
    ],
)
async def test_another_media_type_is_refused(serving: ApiUnderTest, media_type: str) -> None:
    answer = await serving.raw(with_fields(), **{"content-type": media_type})
    assert problem(answer) == (415, "unsupported_media_type")


async def test_a_body_without_media_type_is_refused(serving: ApiUnderTest) -> None:
    answer = await serving.client.post("/api/v1/tasks", content=with_fields())
    assert problem(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", 'APPLICATION/JSON;charset="UTF-8"'])
async def test_json_may_name_its_character_set(api: ApiUnderTest, media_type: str) -> None:
    assert (await api.raw(with_fields(), **{"content-type": media_type})).status_code == 201


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x"])
async def test_a_compressed_body_is_refused(serving: ApiUnderTest, encoding: str) -> None:
    answer = await serving.raw(with_fields(), **{"content-encoding": encoding})
    assert problem(answer) == (415, "unsupported_encoding")


async def test_a_body_one_byte_too_large_is_refused(serving: ApiUnderTest) -> None:
    answer = await serving.raw(b" " * (1024 * 1024 + 1))
    assert problem(answer) == (413, "body_too_large")


async def test_the_largest_body_is_read(serving: ApiUnderTest) -> None:
    answer = await serving.raw(b" " * (1024 * 1024))
    assert problem(answer) == (400, "malformed_json")


@pytest.mark.parametrize("length", [None, "5", "-1", "x", "9" * 30])
async def test_a_body_without_true_length_is_stopped_at_the_limit(serving: ApiUnderTest, length: str | None) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            sent += 64 * 1024
            yield b" " * (64 * 1024)

    headers = {"content-type": "application/json"} | ({"content-length": length} if length else {})
    answer = await serving.client.post("/api/v1/tasks", content=endless(), headers=headers)
    assert problem(answer) == (413, "body_too_large")
    assert sent <= 2 * 1024 * 1024


@pytest.mark.parametrize(
    "text", ["{{ 7*7 }}", "{% for x in y %}", "{{ prompt }}", "{{{{x}}}}", "\x1b[31m\u202eü😀", "\\"]
)
async def test_text_of_every_kind_is_kept_literally(api: ApiUnderTest, text: str) -> None:
    created = await api.submit(parameters=INFERENCE | {"prompt": text})
    read = (await api.client.get(f"/api/v1/tasks/{created['id']}")).json()
    assert read["parameters"]["prompt"] == text


@pytest.mark.parametrize("value", ["9007199254740993", "-9223372036854775808", "1e308", "0.1", "3.0", "[]", "null"])
async def test_numbers_come_back_as_they_were_sent(api: ApiUnderTest, value: str) -> None:
    answer = await api.raw(with_value(value))
    assert answer.status_code == 201
    assert answer.json()["parameters"]["options"] == {"x": json.loads(value)}
