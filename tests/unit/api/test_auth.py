from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from ai_task_orchestra.api_keys import generate_key, key_hash
from api.auth import READ, TRUST_SECONDS, FailureCount, Identity, KeyRing
from tests.support.api_app import INFERENCE, KEY, ApiUnderTest, problem, settings_for
from tests.support.task_double import InMemoryKeys

UNAUTHENTICATED = (401, "unauthenticated")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def ask(api: ApiUnderTest, *headers: tuple[str, str | bytes], path: str = "/api/v1/tasks") -> httpx.Response:
    """A request with exactly these headers."""
    encoded = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers]
    request = httpx.Request("GET", f"http://api.test{path}", headers=encoded)
    return await api.client.send(request)


class TestTheHeader:
    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("X-API-Key", "")],
            [("X-API-Key", "wrong")],
            [("X-API-Key", KEY + "x")],
            [("X-API-Key", KEY[:-1])],
            [("X-API-Key", KEY.upper())],
            [("X-API-Key", "x" * 10_000)],
            [("X-API-Key", b"\xff\xfe")],
            [("X-API-Key", "schlüssel")],
            [("X-API-Key", KEY), ("X-API-Key", KEY)],
            [("X-API-Key", KEY), ("X-API-Key", "")],
            [("X-API-Key", f"{KEY},{KEY}")],
            [("Authorization", f"Bearer {KEY}")],
            [("Cookie", f"X-API-Key={KEY}")],
            [("X-API-Key", generate_key())],
        ],
    )
    async def test_without_one_valid_key_the_answer_is_401(
        self, api: ApiUnderTest, headers: list[tuple[str, str | bytes]]
    ) -> None:
        answer = await ask(api, *headers)
        assert problem(answer) == UNAUTHENTICATED
        assert answer.headers["www-authenticate"].startswith("ApiKey ")
        assert answer.json() == (await ask(api)).json()
        await api.still_serves()

    async def test_a_key_in_the_query_is_ignored(self, api: ApiUnderTest) -> None:
        answer = await ask(api, path=f"/api/v1/tasks?X-API-Key={KEY}&api_key={KEY}&x-api-key={KEY}")
        assert problem(answer) == UNAUTHENTICATED

    async def test_the_headers_name_may_be_written_in_any_case(self, api: ApiUnderTest) -> None:
        assert (await ask(api, ("x-ApI-kEy", KEY))).status_code == 200


class TestWhatNeedsAKey:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
    @pytest.mark.parametrize(
        "path",
        [
            "/api/v1/tasks",
            "/api/v1/tasks/",
            "/api/v1//tasks",
            "/api/v1/tasks/status",
            "/api/v1/tasks/x/priority?priority=99",
            "/api/v1/tasks/x/logs",
            "/api/v1/templates",
            "/api/v1/templates/validate",
            "/api/v1/nothing",
            "/api/v1/health",
            "/api/v1/ready",
            "/api/v1/docs",
            "/api/v1/%2e%2e/health",
            "/api/v1",
            "/api/v1/",
        ],
    )
    async def test_everything_under_the_prefix_does(self, api: ApiUnderTest, method: str, path: str) -> None:
        api.client.headers.pop("x-api-key", None)
        answer = await api.client.request(method, path)
        assert answer.status_code == 401

    async def test_the_key_is_asked_for_before_the_body_is_looked_at(self, api: ApiUnderTest) -> None:
        answer = await api.raw(b"{", **{"X-API-Key": "wrong"})
        assert problem(answer) == UNAUTHENTICATED

    @pytest.mark.parametrize("host", ["a/health?", "localhost/health", "evil.example", "api.test:99999", "[", ""])
    async def test_no_host_header_changes_that(self, api: ApiUnderTest, host: str) -> None:
        answer = await ask(api, ("Host", host), ("X-Forwarded-For", "127.0.0.1"), ("X-Original-URL", "/health"))
        assert problem(answer) == UNAUTHENTICATED


class TestPathsAndMethodsThatDoNotExist:
    @pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/v1/tasks/", "/api/v1//tasks", "/api/v1/health"])
    async def test_with_a_key_an_unknown_path_is_not_found(self, api: ApiUnderTest, path: str) -> None:
        assert problem(await api.client.get(path)) == (404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/api/v1/tasks", "GET, POST"),
            ("POST", "/api/v1/tasks/some-id", "GET, DELETE"),
            ("GET", "/api/v1/tasks/some-id/priority", "PATCH"),
            ("BREW", "/api/v1/templates", "GET"),
        ],
    )
    async def test_with_a_key_a_wrong_method_is_told_the_right_ones(
        self, api: ApiUnderTest, method: str, path: str, allowed: str
    ) -> None:
        answer = await api.client.request(method, path)
        assert problem(answer) == (405, "method_not_allowed")
        assert answer.headers["allow"] == allowed

    async def test_outside_the_prefix_errors_look_the_same(self, api: ApiUnderTest) -> None:
        assert problem(await api.client.get("/x/health")) == (404, "not_found")
        assert problem(await api.client.get("/health/")) == (404, "not_found")
        assert problem(await api.client.post("/health")) == (405, "method_not_allowed")


class TestScopes:
    async def test_a_read_only_key_may_look_but_not_change(self, api: ApiUnderTest) -> None:
        task_id = (await api.submit())["id"]
        key = generate_key()
        api.core.sessions.by_hash[key_hash(key)] = Identity("viewer", scopes=frozenset({READ}))
        api.client.headers["X-API-Key"] = key
        assert (await api.client.get(f"/api/v1/tasks/{task_id}")).status_code == 200
        body = {"template": "ollama-inference", "parameters": INFERENCE}
        for answer in (
            await api.client.post("/api/v1/tasks", json=body),
            await api.client.delete(f"/api/v1/tasks/{task_id}"),
            await api.client.patch(f"/api/v1/tasks/{task_id}/priority?priority=1"),
        ):
            assert problem(answer) == (403, "forbidden_scope")

    async def test_a_stored_key_sees_only_its_tenants_tasks(self, api: ApiUnderTest) -> None:
        await api.submit()
        key = generate_key()
        api.core.sessions.by_hash[key_hash(key)] = Identity("other", tenant="other")
        answer = await api.client.get("/api/v1/tasks", headers={"X-API-Key": key})
        assert answer.json() == []


class TestKeyRing:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def stored(self) -> InMemoryKeys:
        return InMemoryKeys()

    @pytest.fixture
    def ring(self, tmp_path: Path, stored: InMemoryKeys, clock: Clock) -> KeyRing:
        return KeyRing(settings_for(tmp_path, api_key=None), stored, clock=clock)

    async def test_a_revocation_counts_within_five_seconds(
        self, ring: KeyRing, stored: InMemoryKeys, clock: Clock
    ) -> None:
        key = generate_key()
        stored.by_hash[key_hash(key)] = Identity("ci")
        assert await ring.identify(key.encode()) == Identity("ci")
        stored.by_hash.clear()
        assert await ring.identify(key.encode()) is not None
        clock.now += TRUST_SECONDS
        assert await ring.identify(key.encode()) is None
        assert TRUST_SECONDS < 5

    async def test_expiry_counts_at_once_also_for_a_remembered_key(self, ring: KeyRing, stored: InMemoryKeys) -> None:
        key = generate_key()
        past = datetime.now(UTC) - timedelta(seconds=1)
        stored.by_hash[key_hash(key)] = Identity("ci", expires_at=past)
        assert await ring.identify(key.encode()) is None

    async def test_the_database_is_asked_once_and_only_about_plausible_keys(
        self, ring: KeyRing, stored: InMemoryKeys
    ) -> None:
        key = generate_key()
        for presented in (b"guess", b"ato_" + b"a" * 28, b"\xff", key.encode(), key.encode()):
            await ring.identify(presented)
        assert stored.asked == [key_hash(key)]

    async def test_the_key_file_opens_the_api_and_may_be_renewed(
        self, ring: KeyRing, tmp_path: Path, clock: Clock
    ) -> None:
        assert await ring.identify(b"first-key") is None
        for key in ("first-key", "second-key"):
            (tmp_path / "api-key").write_text(f"{key}\n")
            clock.now += TRUST_SECONDS
            assert await ring.identify(key.encode()) == Identity("key-file")
        assert await ring.identify(b"first-key") is None

    @pytest.mark.parametrize("blank", ["", "  ", "\n"])
    async def test_a_blank_configured_key_opens_nothing(self, tmp_path: Path, stored: InMemoryKeys, blank: str) -> None:
        (tmp_path / "api-key").write_text(blank)
        ring = KeyRing(settings_for(tmp_path, api_key=blank), stored)
        assert await ring.identify(blank.encode()) is None
        assert await ring.has_any() is False

    async def test_an_unreadable_key_file_opens_nothing(self, ring: KeyRing, tmp_path: Path) -> None:
        (tmp_path / "api-key").write_bytes(b"\xff\xfe")
        assert await ring.identify(b"\xff\xfe") is None


class TestFailureCount:
    def test_failures_over_the_limit_are_told_until_the_minute_is_over(self) -> None:
        clock = Clock()
        failures = FailureCount(2, clock=clock)
        assert [failures.record("a") for _ in range(3)] == [False, False, True]
        assert failures.record("b") is False
        clock.now += 60
        assert failures.record("a") is False

    async def test_a_flood_of_wrong_keys_is_slowed_and_valid_ones_are_not(self, api: ApiUnderTest) -> None:
        before = api.app.state.failures
        api.app.state.failures = FailureCount(1)
        try:
            answers = [await ask(api, ("X-API-Key", "wrong")) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [401, 429]
            assert answers[1].headers["retry-after"] == "60"
            assert problem(await ask(api)) == UNAUTHENTICATED
            await api.still_serves()
        finally:
            api.app.state.failures = before
