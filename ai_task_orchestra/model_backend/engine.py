"""The HTTP client of one runner: llama.cpp's own API, its errors translated here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from ai_task_orchestra.model_backend.protocol import ProtocolError

STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error "
    "in the embedded backend"
)


@dataclass(frozen=True)
class Finish:
    """The end of a completion. Durations are nanoseconds; `prompt_tokens` counts cached ones too."""

    reason: str
    prompt_tokens: int
    prompt_nanoseconds: int
    output_tokens: int
    output_nanoseconds: int


@dataclass(frozen=True)
class Embeddings:
    """One unit vector per text, and the tokens read."""

    vectors: list[list[float]]
    prompt_tokens: int


def open_http() -> httpx.AsyncClient:
    """The client that all runners share.

    The engine closes its socket after a streamed answer although it announces keep-alive, so that a pooled connection
    fails on its next use: every request gets a new one. Reading has no time limit: a long prompt is silent for
    minutes on a slow CPU, and whoever waits for it can hang up. No proxy setting may catch loopback traffic.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(10.0, read=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        trust_env=False,
    )


class EngineClient:
    """Speaks with one runner."""

    def __init__(self, http: httpx.AsyncClient, address: str, api_key: str) -> None:
        self._http = http
        self._address = address
        self._headers = {"Authorization": f"Bearer {api_key}"}

    async def render(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None = None) -> str:
        """The prompt that the model's chat template makes of `messages`.

        Raises:
            ProtocolError: the template refuses the messages, or `schema` is no usable JSON Schema.
        """
        body: dict[str, Any] = {"messages": list(messages)}
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "format", "schema": schema}}
        return str((await self._ask("/apply-template", body))["prompt"])

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a prompt, with the special ones the engine would add."""
        tokens = await self._ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(token) for token in tokens["tokens"]]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return str((await self._ask("/detokenize", {"tokens": list(tokens)}))["content"])

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors of `texts`."""
        answer = await self._ask("/v1/embeddings", {"input": list(texts)})
        return Embeddings([item["embedding"] for item in answer["data"]], int(answer["usage"]["prompt_tokens"]))

    async def complete(self, payload: Mapping[str, Any]) -> AsyncGenerator[str | Finish, None]:
        """Pieces of text as they come, then one `Finish`. Closing the iterator stops the engine's work.

        Raises:
            ProtocolError: the request is refused, or the runner is gone.
        """
        with _translated():
            async with self._http.stream(
                "POST", f"{self._address}/completion", json={**payload, "stream": True}, headers=self._headers
            ) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise _refusal(500, line[6:].encode())
                    if event["content"]:
                        yield event["content"]
                    if event.get("stop"):
                        yield _finish(event)
                        return
        raise ProtocolError(500, STOPPED)

    async def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with _translated():
            response = await self._http.post(f"{self._address}{path}", json=body, headers=self._headers)
            if response.status_code != 200:
                raise _refusal(response.status_code, response.content)
            answer: dict[str, Any] = response.json()
            return answer


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        raise ProtocolError(500, f"{STOPPED} ({type(exc).__name__})") from exc


def _refusal(status: int, body: bytes) -> ProtocolError:
    """The engine's own sentence. Its 500 for a text longer than a batch is the caller's mistake."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = "the model runner gave an answer that can't be read"
    return ProtocolError(400 if "too large to process" in message else status, message)


def _finish(event: Mapping[str, Any]) -> Finish:
    timings = event.get("timings") or {}
    return Finish(
        reason="length" if event.get("stop_type") == "limit" else "stop",
        prompt_tokens=int(timings.get("cache_n", 0)) + int(timings.get("prompt_n", 0)),
        prompt_nanoseconds=int(float(timings.get("prompt_ms", 0)) * 1e6),
        output_tokens=int(timings.get("predicted_n", 0)),
        output_nanoseconds=int(float(timings.get("predicted_ms", 0)) * 1e6),
    )
