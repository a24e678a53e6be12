from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from ai_task_orchestra.api_keys import generate_key, key_hash
from api.identity import Identity
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


async def every_kind_of_answer(api: ApiUnderTest) -> AsyncIterator[httpx.Response]:
    """One answer of each status that this API gives on purpose or by mistake."""
    task = (await api.submit())["id"]
    path, wrong = f"/api/v1/tasks/{task}", {"X-API-Key": "wrong"}
    for good in ("/health", "/ready", "/docs", "/openapi.json", "/api/v1/tasks", "/api/v1/templates", path):
        yield await api.client.get(good)
    yield await api.client.post("/api/v1/templates/validate?template_name=every-type", json={})
    yield await api.client.delete(path)  # 204
    yield await api.raw(b"{")  # 400
    yield await api.client.get("/api/v1/tasks", headers=wrong)  # 401
    reader = generate_key()
    api.core.sessions.by_hash[key_hash(reader)] = Identity("reader", scopes=frozenset({"read"}))
    yield await api.client.get("/api/v1/keys", headers={"X-API-Key": reader})  # 403
    yield await api.client.get("/nothing")  # 404
    yield await api.client.get("/api/v1/nothing")
    yield await api.client.put("/api/v1/tasks")  # 405
    yield await api.client.options("/health")
    yield await api.client.patch(f"{path}/priority?priority=1")  # 409
    yield await api.raw(b"x" * 2_000_000)  # 413
    yield await api.client.post("/api/v1/tasks", content=b"x")  # 415
    yield await api.client.get("/api/v1/tasks?limit=0")  # 422
    for _ in range(20):
        yield await api.client.get("/api/v1/tasks", headers=wrong)  # 429
    api.tasks.missing["prefect"] = "away"
    yield await api.client.get("/ready")  # 503
    api.tasks.broken = ZeroDivisionError()
    yield await api.client.get("/api/v1/tasks")  # 500


async def test_every_answer_carries_the_security_headers(api: ApiUnderTest) -> None:
    api.client.headers.update({"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"})
    seen = set()
    async for answer in every_kind_of_answer(api):
        seen.add(answer.status_code)
        shown, headers = str(answer.request.url), answer.headers
        assert headers["x-request-id"], shown
        assert headers["x-content-type-options"] == "nosniff", shown
        assert headers["cache-control"] == "no-store", shown
        assert headers["x-frame-options"] == "DENY", shown
        assert headers["referrer-policy"] == "no-referrer", shown
        assert headers["cross-origin-resource-policy"] == "same-origin", shown
        assert "default-src 'none'" in headers["content-security-policy"], shown
        assert "frame-ancestors 'none'" in headers["content-security-policy"], shown
        assert not [name for name in headers if name.startswith("access-control-")], shown
    assert seen == {200, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 503}


async def test_only_the_documentation_page_may_run_a_script(api: ApiUnderTest) -> None:
    async for answer in every_kind_of_answer(api):
        runs = "script-src" in answer.headers["content-security-policy"]
        assert runs is (answer.request.url.path == "/docs")


@pytest.mark.parametrize("path", ["/api/v1/tasks", "/api/v1/keys", "/health", "/docs"])
async def test_another_pages_script_is_not_let_in(api: ApiUnderTest, path: str) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "x-api-key"
    answer = await api.client.options(path, headers=asked)
    assert answer.status_code in (401, 405)
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
