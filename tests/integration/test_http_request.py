"""`http_request` against a loopback server, and everything it must not reach."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import StepError, StepInputError
from flows.steps.base import StepContext
from flows.steps.http_request import HttpRequest
from tests.support.steps import step_context
from tests.support.tls import certificate


class Server:
    """Answers every request the same; keeps what was asked. With a certificate it speaks TLS."""

    def __init__(self, certificate: Path | None = None) -> None:
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if certificate else None
        if self._tls is not None and certificate is not None:
            self._tls.load_cert_chain(certificate)
            self._tls.sni_callback = lambda _, name, __: self.names.append(name)
        self.names: list[str | None] = []
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.endless = False
        self.requests: list[tuple[list[str], bytes]] = []
        self.sent_bytes = 0

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        length = next((int(line[15:]) for line in head if line.lower().startswith("content-length:")), 0)
        self.requests.append((head, await reader.readexactly(length)))
        writer.write(self.answer)
        try:
            while self.endless:
                writer.write(b"x" * 65536)
                await writer.drain()
                self.sent_bytes += 65536
        except ConnectionError:
            pass
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server() as running:
        yield running


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return step_context(tmp_path, http_allow_private=True, connect_timeout_seconds=2)


async def request(context: StepContext, url: str, **fields: Any) -> dict[str, Any]:
    return await HttpRequest().run({"url": url, **fields}, context)


async def test_a_request_is_a_get_unless_told_otherwise(server: Server, context: StepContext) -> None:
    assert await request(context, f"{server.url}/a%20b?c=d&e#f") == {"status": 200, "output": "ok", "truncated": False}
    head, body = server.requests[0]
    assert head[0] == "GET /a%20b?c=d&e HTTP/1.1"
    assert f"host: 127.0.0.1:{server.port}" in [line.lower() for line in head]
    assert body == b""


async def test_json_and_headers_are_sent(server: Server, context: StepContext) -> None:
    await request(context, server.url, method="post", json={"a": [1, None, "ü"]}, headers={"X-Token": "t"})
    head, body = server.requests[0]

    assert head[0].startswith("POST / ")
    assert json.loads(body) == {"a": [1, None, "ü"]}
    lines = [line.lower() for line in head]
    assert "content-type: application/json" in lines
    assert "x-token: t" in lines


async def test_the_name_is_looked_up_once_and_kept_as_host(
    server: Server, context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def lookup(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    await request(context, f"http://name.example:{server.port}/")

    assert asked == ["name.example"]
    assert f"host: name.example:{server.port}" in [line.lower() for line in server.requests[0][0]]


async def test_the_next_address_is_tried_if_one_does_not_answer(
    server: Server, context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lookup(_: str, port: int, **__: object) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)

    assert (await request(context, f"http://name.example:{server.port}/"))["status"] == 200


async def test_over_https_the_name_is_what_is_asked_for_and_checked(
    context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lookup(_: str, port: int, **__: object) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    trusted = certificate(tmp_path, "name.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    async with Server(trusted) as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        assert (await request(context, f"https://name.example:{server.port}/"))["status"] == 200
        with pytest.raises(StepError, match="certificate can't be verified"):
            await request(context, f"https://other.example:{server.port}/")

    assert server.names == ["name.example", "other.example"]


async def test_a_proxy_of_the_worker_is_not_used(
    server: Server, context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    assert (await request(context, server.url))["status"] == 200


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0",
        "2130706433",
        "0x7f.1",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
    ],
)
async def test_addresses_that_are_not_public_are_not_reached(server: Server, tmp_path: Path, host: str) -> None:
    with pytest.raises(StepInputError, match=r"^url: "):
        await request(step_context(tmp_path), f"http://{host}:{server.port}/")

    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "file:///etc/passwd",
        "ftp://example.org/",
        "gopher://example.org/",
        "http://",
        "http:///x",
        "http://user:password@example.org/",
        "http://user@example.org/",
        "http://example.org/a b",
        "http://example.org/\r\nX: y",
        "http://example.org\\@127.0.0.1/",
        "http://example.org:99999/",
        "http://[::1",
        "http://example.org/" + "x" * 9000,
    ],
)
async def test_what_is_no_plain_web_address_is_refused(context: StepContext, url: str) -> None:
    with pytest.raises(StepInputError, match=r"^url: ") as caught:
        await request(context, url)

    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "TRACE"},
        {"method": "GET / HTTP/1.1\r\nX: y"},
        {"headers": []},
        {"headers": {"Host": "other"}},
        {"headers": {"content-length": "3"}},
        {"headers": {"Transfer-Encoding": "chunked"}},
        {"headers": {"X Y": "z"}},
        {"headers": {"X": "a\r\nY: z"}},
        {"headers": {"X": "ü"}},
        {"headers": {"X": 3}},
        {"json": float("nan")},
    ],
)
async def test_a_request_can_not_be_bent_into_another(
    server: Server, context: StepContext, fields: dict[str, Any]
) -> None:
    with pytest.raises(StepInputError):
        await request(context, server.url, **fields)

    assert server.requests == []


async def test_a_redirect_is_an_answer_and_not_followed(server: Server, context: StepContext) -> None:
    server.answer = f"HTTP/1.1 302 Found\r\nLocation: {server.url}/other\r\nContent-Length: 0\r\n\r\n".encode()

    assert (await request(context, server.url))["status"] == 302
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "retryable"), [(404, False), (500, False), (429, True), (502, True), (503, True), (504, True)]
)
async def test_an_error_status_fails_the_step(
    server: Server, context: StepContext, status: int, retryable: bool
) -> None:
    server.answer = f"HTTP/1.1 {status} X\r\nContent-Length: 6\r\n\r\nsecret".encode()
    with pytest.raises(StepError, match=f"answered {status}") as caught:
        await request(context, server.url)

    assert caught.value.retryable is retryable
    assert "secret" not in str(caught.value)


async def test_an_endless_answer_is_cut_and_the_connection_closed(server: Server, context: StepContext) -> None:
    server.answer, server.endless = b"HTTP/1.1 200 OK\r\n\r\n", True
    given = await request(context, server.url)

    assert given["truncated"] is True
    assert given["output"] == "x" * context.settings.max_output_bytes
    assert server.sent_bytes < 64 * 1024 * 1024


async def test_a_packed_answer_is_refused(server: Server, context: StepContext) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"
    with pytest.raises(StepError, match="packed"):
        await request(context, server.url)


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"])
async def test_a_broken_answer_is_worth_a_retry(server: Server, context: StepContext, answer: bytes) -> None:
    server.answer = answer
    with pytest.raises(StepError) as caught:
        await request(context, server.url)

    assert caught.value.retryable


async def test_a_server_that_is_not_there_is_worth_a_retry(context: StepContext) -> None:
    with pytest.raises(StepError, match="can't be reached") as caught:
        await request(context, "http://127.0.0.1:1/")

    assert caught.value.retryable
