from __future__ import annotations

import uuid
from collections import Counter

import httpx
import pytest

from ai_task_orchestra.api_keys import generate_key, key_hash
from api.identity import ADMIN, READ, SUBMIT, Identity, Limits
from tests.support.api_app import INFERENCE, KEY, ApiUnderTest, problem

UNAUTHENTICATED = (401, "unauthenticated")
BODY = {"template": "ollama-inference", "parameters": INFERENCE}


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


def key_of(api: ApiUnderTest, identity: Identity) -> str:
    """A stored key of this holder."""
    key = generate_key()
    api.core.sessions.by_hash[key_hash(key)] = identity
    return key


class TestScopes:
    @pytest.fixture
    def requests(self) -> dict[str, list[tuple[str, str]]]:
        """Requests by the scope that they need."""
        nobody = "00000000-0000-0000-0000-000000000000"
        return {
            READ: [("GET", "/tasks"), ("GET", "/tasks/status"), ("GET", f"/tasks/{nobody}"), ("GET", "/templates")],
            SUBMIT: [
                ("POST", "/tasks"),
                ("DELETE", f"/tasks/{nobody}"),
                ("PATCH", f"/tasks/{nobody}/priority?priority=1"),
            ],
            ADMIN: [
                ("GET", "/keys"),
                ("POST", "/keys"),
                ("GET", f"/keys/{nobody}"),
                ("DELETE", f"/keys/{nobody}"),
                ("POST", f"/keys/{nobody}/rotate"),
                ("GET", "/audit"),
            ],
        }

    @pytest.mark.parametrize("scope", [READ, SUBMIT, ADMIN])
    async def test_a_key_may_do_what_its_scope_says_and_nothing_else(
        self, api: ApiUnderTest, requests: dict[str, list[tuple[str, str]]], scope: str
    ) -> None:
        api.client.headers["X-API-Key"] = key_of(api, Identity("one", scopes=frozenset({scope})))
        for needed, listed in requests.items():
            for method, path in listed:
                answer = await api.client.request(method, f"/api/v1{path}", json=BODY if method == "POST" else None)
                if needed == scope:
                    assert answer.status_code != 403, (method, path)
                else:
                    assert problem(answer) == (403, "forbidden_scope"), (method, path)

    async def test_a_stored_key_sees_only_its_tenants_tasks(self, api: ApiUnderTest) -> None:
        await api.submit()
        answer = await api.client.get(
            "/api/v1/tasks", headers={"X-API-Key": key_of(api, Identity("b", tenant="other"))}
        )
        assert answer.json() == []


class TestLimitsOfAKey:
    async def test_a_template_that_is_not_among_its_own_is_refused(self, api: ApiUnderTest) -> None:
        api.client.headers["X-API-Key"] = key_of(api, Identity("one", limits=Limits(templates=("every-type",))))
        assert problem(await api.client.post("/api/v1/tasks", json=BODY)) == (403, "forbidden_template")
        await api.submit(template="every-type", parameters={"seconds": 1})

    async def test_a_priority_above_its_ceiling_becomes_the_ceiling_and_the_answer_says_so(
        self, api: ApiUnderTest
    ) -> None:
        api.client.headers["X-API-Key"] = key_of(api, Identity("one", limits=Limits(max_priority=6)))
        created = await api.submit(priority=9)
        assert (created["priority"], created["requested_priority"]) == (6, 9)
        path = f"/api/v1/tasks/{created['id']}"
        assert (await api.client.get(path)).json()["priority"] == 6
        changed = (await api.client.patch(f"{path}/priority?priority=10")).json()
        assert (changed["priority"], changed["requested_priority"]) == (6, 10)

    async def test_a_priority_within_its_ceiling_is_answered_as_ever(self, api: ApiUnderTest) -> None:
        api.client.headers["X-API-Key"] = key_of(api, Identity("one", limits=Limits(max_priority=6)))
        created = await api.submit(priority=6)
        assert created["priority"] == 6
        assert "requested_priority" not in created

    async def test_more_requests_than_it_may_send_are_told_when_to_come_back(self, api: ApiUnderTest) -> None:
        identity = Identity("one", key_id=uuid.uuid4(), limits=Limits(requests_per_minute=3))
        api.client.headers["X-API-Key"] = key_of(api, identity)
        answers = [await api.client.get("/api/v1/tasks") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert problem(answers[3]) == (429, "too_many_requests")
        assert 1 <= int(answers[3].headers["retry-after"]) <= 60
        api.client.headers["X-API-Key"] = KEY
        await api.still_serves()

    async def test_the_operators_key_has_no_limit(self, api: ApiUnderTest) -> None:
        assert {(await api.client.get("/api/v1/templates")).status_code for _ in range(100)} == {200}


class TestWrongKeys:
    async def test_a_thousand_from_one_address_are_slowed_and_nobody_else_is(self, api: ApiUnderTest) -> None:
        right = key_of(api, Identity("one", key_id=uuid.uuid4()))
        async with guessing_from(api, "192.0.2.1") as guesser, guessing_from(api, "192.0.2.2") as neighbour:
            answers = [await guesser.get("/api/v1/tasks", headers={"X-API-Key": generate_key()}) for _ in range(1000)]
            codes = Counter(answer.status_code for answer in answers)
            assert codes == {401: 10, 429: 990}
            assert problem(answers[-1]) == (429, "too_many_wrong_keys")
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
            wrong = await neighbour.get("/api/v1/tasks", headers={"X-API-Key": "wrong"})
            assert problem(wrong) == UNAUTHENTICATED
            for client in (guesser, neighbour):
                for key in (right, KEY):
                    assert (await client.get("/api/v1/tasks", headers={"X-API-Key": key})).status_code == 200

    async def test_requests_without_a_key_are_no_guesses(self, api: ApiUnderTest) -> None:
        async with guessing_from(api, "192.0.2.1") as client:
            assert {(await client.get("/api/v1/tasks")).status_code for _ in range(30)} == {401}


def guessing_from(api: ApiUnderTest, address: str) -> httpx.AsyncClient:
    """A client without a key at another address."""
    transport = httpx.ASGITransport(app=api.app, client=(address, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://api.test")
