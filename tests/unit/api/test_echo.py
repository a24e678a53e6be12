"""Error bodies never repeat a value that was sent: over every operation of the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx

from tests.support.api_app import INFERENCE, ApiUnderTest

CANARY = "canary-5f0e7d"
#: By the contract an error names the dependency, and the template, that does not exist.
NAMED_ON_PURPOSE = ("/api/v1/templates/{template_name}", "template_name", "template", "depends_on")


def requests(document: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(method, path, what holds the canary, further arguments) for each place of each operation."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            filled = "".join(part if "{" not in part else "/x" for part in path.replace("/{", "\n/{").split("\n"))
            for parameter in operation.get("parameters", ()):
                yield from _in_parameter(method, path, parameter)
            if "requestBody" in operation:
                yield from _in_body(method, filled, operation["requestBody"])
            yield method, filled, "X-API-Key", {"headers": {"X-API-Key": CANARY}}
            yield method, f"{filled}?X-API-Key={CANARY}", "an unknown query", {}


def _in_parameter(method: str, path: str, parameter: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    name = parameter["name"]
    if parameter["in"] == "path" and path not in NAMED_ON_PURPOSE:
        for value in (CANARY, f"{CANARY} ", quote(f"<{CANARY}>")):
            yield method, path.replace(f"{{{name}}}", value), name, {}
    elif parameter["in"] == "query" and name not in NAMED_ON_PURPOSE:
        yield method, path.replace("{", "").replace("}", ""), name, {"params": {name: CANARY}}
    elif parameter["in"] == "header":
        yield method, path, name, {"headers": {name: f"{CANARY} ü".encode()}}


def _in_body(method: str, path: str, body: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    schema = body["content"]["application/json"]["schema"]
    path += "?template_name=ollama-inference" if path.endswith("validate") else ""
    headers = {"Content-Type": "application/json"}
    for content in (
        f'{{"{CANARY}',
        f'"{CANARY}"',
        f'["{CANARY}"]',
        f'{{"x": {CANARY}}}',
        f'{{"x": "{CANARY}\\ud800"}}',
    ):
        yield method, path, content, {"content": content.encode(), "headers": headers}
    valid = {"template": "ollama-inference", "parameters": INFERENCE, "name": "x"}
    known = {name: value for name, value in valid.items() if name in schema.get("properties", {})}
    for name in schema.get("properties", {}):
        if name not in NAMED_ON_PURPOSE:
            for value in (CANARY, [CANARY], {"x": CANARY}, [[CANARY]]):
                text = json.dumps(known | {name: value})
                yield method, path, f"{name}: {value!r}", {"content": text.encode(), "headers": headers}
    parameters = {"template": "ollama-inference", "parameters": {"model": [CANARY], "prompt": {"x": CANARY}}}
    yield method, path, "parameters", {"content": json.dumps(parameters).encode(), "headers": headers}


async def test_no_error_repeats_a_value(api: ApiUnderTest) -> None:
    document = (await api.client.get("/openapi.json")).json()
    errors = 0
    for method, path, place, more in requests(document):
        if "X-API-Key" not in more.get("headers", {}):
            more = more | {"headers": more.get("headers", {}) | {"X-API-Key": api.client.headers["x-api-key"]}}
        answer: httpx.Response = await api.client.request(method, path, **more)
        assert answer.status_code != 500, (method, path, place)
        if answer.status_code >= 400:
            errors += 1
            assert CANARY not in answer.text, (method, path, place)
            assert CANARY not in str(answer.headers), (method, path, place)
    assert errors > 100
