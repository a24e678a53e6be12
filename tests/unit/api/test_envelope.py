from __future__ import annotations

import logging
import re

import pytest

from tests.support.api_app import KEY, ApiUnderTest, problem


@pytest.mark.parametrize("given", ["abc", "4f1c-9.x_y:z", "x" * 128])
async def test_a_sane_request_id_is_kept(api: ApiUnderTest, given: str) -> None:
    answer = await api.client.get("/health", headers={"X-Request-ID": given})
    assert answer.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "<script>", "-x", b"\xff", "ü".encode()])
async def test_any_other_is_replaced(api: ApiUnderTest, given: str | bytes) -> None:
    value = given if isinstance(given, bytes) else given.encode()
    answer = await api.client.get("/health", headers={b"X-Request-ID": value})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_requests_without_one_get_different_ones(api: ApiUnderTest) -> None:
    ids = {(await api.client.get("/health")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


@pytest.mark.parametrize("path", ["/health", "/ready", "/nothing", "/api/v1/tasks", "/api/v1/nothing"])
async def test_every_answer_carries_the_security_headers(api: ApiUnderTest, path: str) -> None:
    answer = await api.client.get(path, headers={"Origin": "https://evil.example"})
    assert answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_an_unexpected_error_shows_nothing_and_its_log_line_has_the_id(
    api: ApiUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    api.tasks.broken = ZeroDivisionError("secret at /root/secret.py")
    answer = await api.client.get("/api/v1/tasks")
    assert problem(answer) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "Zero" not in answer.text
    (line,) = [record for record in caplog.records if record.message == "request_failed"]
    assert line.request_id == answer.headers["x-request-id"]  # type: ignore[attr-defined]
    assert line.exc_info
    assert isinstance(line.exc_info[1], ZeroDivisionError)


async def test_each_request_is_logged_once_without_query_and_key(
    api: ApiUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "api")
    await api.client.get("/api/v1/tasks?template=private&api_key=hidden")
    (line,) = [record for record in caplog.records if record.name == "api.envelope"]
    known = vars(line)
    assert (known["method"], known["path"], known["status"]) == ("GET", "/api/v1/tasks", 200)
    assert known["api_key"] == "operator"
    assert known["duration_ms"] >= 0
    assert not {"private", "hidden", KEY} & set(re.findall(r"[\w-]+", repr(known)))
