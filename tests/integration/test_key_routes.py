"""`/keys` over the core's double and over the real core on PostgreSQL; the audit over the latter."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_app import INFERENCE, problem, running_api
from tests.support.api_core import api_on_core, migrated_settings

KEYS, TASKS, AUDIT = "/api/v1/keys", "/api/v1/tasks", "/api/v1/audit"
BODY: dict[str, Any] = {"template": "ollama-inference", "parameters": INFERENCE}


@pytest.fixture(params=["double", "core"])
async def client(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client, with the operator's key, of the API over the one and the other."""
    if request.param == "double":
        async with running_api(tmp_path) as api:
            yield api.client
    else:
        async with api_on_core(await migrated_settings(tmp_path, database_url)) as real:
            yield real


@pytest.fixture
async def core(tmp_path: Path, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with api_on_core(await migrated_settings(tmp_path, database_url)) as real:
        yield real


async def make(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(KEYS, json={"name": "ci"} | fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def holder(made: dict[str, Any]) -> dict[str, str]:
    return {"X-API-Key": made["key"]}


async def test_a_key_is_shown_when_it_is_made_and_never_again(client: httpx.AsyncClient) -> None:
    answer = await client.post(KEYS, json={"name": "ci", "tenant": "team", "max_priority": 3})
    made = answer.json()
    path = answer.headers["location"]
    assert path == f"{KEYS}/{made['id']}"
    assert (made["tenant"], made["scopes"], made["max_priority"], made["status"]) == (
        "team",
        ["read", "submit"],
        3,
        "active",
    )
    described = (await client.get(path)).json()
    assert described == {name: value for name, value in made.items() if name != "key"}
    listed = await client.get(KEYS)
    assert listed.json() == [described]
    assert listed.headers["x-total-count"] == "1"
    assert made["key"] not in listed.text


async def test_a_revoked_key_opens_nothing_at_once(client: httpx.AsyncClient) -> None:
    made = await make(client)
    assert (await client.get(TASKS, headers=holder(made))).status_code == 200
    for _ in range(2):
        assert (await client.delete(f"{KEYS}/{made['id']}")).status_code == 204
    assert problem(await client.get(TASKS, headers=holder(made))) == (401, "unauthenticated")
    assert (await client.get(f"{KEYS}/{made['id']}")).json()["status"] == "revoked"
    assert problem(await client.post(f"{KEYS}/{made['id']}/rotate")) == (409, "conflict")


async def test_a_rotated_key_has_two_texts_for_the_overlap(client: httpx.AsyncClient) -> None:
    made = await make(client, tenant="team")
    answer = await client.post(f"{KEYS}/{made['id']}/rotate")
    rotated = answer.json()
    assert (rotated["id"], rotated["tenant"]) == (made["id"], "team")
    assert rotated["key"] != made["key"]
    assert datetime.fromisoformat(rotated["previous_expires_at"]) > datetime.now(UTC) + timedelta(hours=23)
    for key in (made, rotated):
        assert (await client.get(TASKS, headers=holder(key))).status_code == 200
    last = (await client.post(f"{KEYS}/{made['id']}/rotate", json={"overlap_seconds": 0})).json()
    codes = [(await client.get(TASKS, headers=holder(key))).status_code for key in (made, rotated, last)]
    assert codes == [401, 401, 200]


NO_SENSE: list[dict[str, Any]] = [
    {},
    {"name": ""},
    {"name": 5},
    {"name": "a\nb"},
    {"name": "a", "tenant": "a b"},
    {"name": "a", "scopes": ["write"]},
    {"name": "a", "scopes": []},
    {"name": "a", "expires_at": "2020-01-01T00:00:00Z"},
    {"name": "a", "expires_at": "2050-01-01T00:00:00"},
    {"name": "a", "expires_at": "tomorrow"},
    {"name": "a", "templates": []},
    {"name": "a", "max_priority": 11},
    {"name": "a", "max_queued": 0},
    {"name": "a", "max_running": True},
    {"name": "a", "requests_per_minute": 1.5},
    {"name": "a", "key": "ato_of_my_choice"},
]


async def test_a_key_that_makes_no_sense_is_refused(client: httpx.AsyncClient) -> None:
    for wrong in NO_SENSE:
        assert (await client.post(KEYS, json=wrong)).status_code == 422, wrong
    assert (await client.get(KEYS)).json() == []


async def test_a_rotation_that_makes_no_sense_is_refused(client: httpx.AsyncClient) -> None:
    made = await make(client)
    for overlap in (-1, 31 * 24 * 3600, "1", None):
        answer = await client.post(f"{KEYS}/{made['id']}/rotate", json={"overlap_seconds": overlap})
        assert problem(answer) == (422, "validation_error")
    assert (await client.get(TASKS, headers=holder(made))).status_code == 200


async def test_a_key_nobody_made_is_not_found(client: httpx.AsyncClient) -> None:
    known = (await make(client))["id"]
    for key_id in ("nobody", str(uuid.uuid4()), known.upper(), known.replace("-", ""), "%00"):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
            assert problem(await client.request(method, f"{KEYS}/{key_id}{path}")) == (404, "not_found")


async def test_a_key_holds_no_more_queued_tasks_than_its_limit(client: httpx.AsyncClient) -> None:
    made = await make(client, max_queued=3)
    answers = await asyncio.gather(*(client.post(TASKS, json=BODY, headers=holder(made)) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert problem(refused) == (429, "too_many_queued")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.post(TASKS, json=BODY)).status_code == 201  # the operator has no limit
    task_id = next(answer for answer in answers if answer.status_code == 201).json()["id"]
    assert (await client.delete(f"{TASKS}/{task_id}", headers=holder(made))).status_code == 204
    assert (await client.post(TASKS, json=BODY, headers=holder(made))).status_code == 201


async def test_a_repeated_request_is_answered_whatever_the_limit(client: httpx.AsyncClient) -> None:
    made = await make(client, max_queued=1)
    headers = holder(made) | {"Idempotency-Key": "once"}
    answers = [await client.post(TASKS, json=BODY, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]


def batch(*tasks: dict[str, Any]) -> dict[str, Any]:
    return {"tasks": [BODY | task for task in tasks]}


async def test_a_batch_counts_as_a_whole(client: httpx.AsyncClient) -> None:
    made = await make(client, max_queued=3)
    for size, code in ((2, 201), (2, 429), (1, 201), (1, 429)):
        answer = await client.post(f"{TASKS}/batch", json=batch(*[{}] * size), headers=holder(made))
        assert answer.status_code == code, answer.text
    assert problem(answer) == (429, "too_many_queued")
    assert (await client.get(TASKS, headers=holder(made))).headers["x-total-count"] == "3"


async def test_a_batchs_templates_and_priorities_are_the_keys(client: httpx.AsyncClient) -> None:
    made = await make(client, max_priority=6, templates=["ollama-inference"])
    body = batch({"name": "a", "priority": 9}, {"priority": 6})
    for _ in range(2):
        answer = await client.post(f"{TASKS}/batch", json=body, headers=holder(made) | {"Idempotency-Key": "once"})
        accepted = answer.json()
        assert accepted["requested_priorities"] == {accepted["tasks"]["a"]: 9}
    found = (await client.get(f"/api/v1/batches/{accepted['id']}", headers=holder(made))).json()
    assert [task["priority"] for task in found["tasks"]] == [6, 6]
    other = {"template": "every-type", "parameters": {"seconds": 1}}
    refused = await client.post(f"{TASKS}/batch", json=batch({}, other), headers=holder(made))
    assert problem(refused) == (403, "forbidden_template")
    assert "tasks[1]" in refused.json()["detail"]


class TestAudit:
    async def test_every_change_is_there_with_its_key_and_request_newest_first(self, core: httpx.AsyncClient) -> None:
        made = await make(core, tenant="team")
        asked = [
            await core.post(TASKS, json=BODY | {"priority": 4}, headers=holder(made)),
        ]
        task = f"{TASKS}/{asked[0].json()['id']}"
        asked += [
            await core.patch(f"{task}/priority?priority=8", headers=holder(made)),
            await core.delete(task, headers=holder(made)),
            await core.post(f"{KEYS}/{made['id']}/rotate", json={"overlap_seconds": 60}),
            await core.delete(f"{KEYS}/{made['id']}"),
        ]
        assert [answer.is_success for answer in asked] == [True] * 5
        found = (await core.get(AUDIT)).json()
        assert [entry["kind"] for entry in reversed(found)] == [
            "key_created",
            "task_created",
            "priority_changed",
            "task_cancelled",
            "key_rotated",
            "key_revoked",
        ]
        created, submitted, moved, cancelled, rotated, revoked = reversed(found)
        for entry, answer in zip((submitted, moved, cancelled, rotated, revoked), asked, strict=True):
            assert entry["request_id"] == answer.headers["x-request-id"]
        for entry in (submitted, moved, cancelled):
            assert (entry["actor"], entry["actor_key_id"], entry["tenant"]) == ("ci", made["id"], "team")
            assert entry["task_id"] == asked[0].json()["id"]
        for entry in (created, rotated, revoked):
            assert (entry["actor"], entry["key_id"]) == ("operator", made["id"])
            assert "actor_key_id" not in entry
        assert submitted["detail"] == {"template": "ollama-inference", "priority": 4}
        assert moved["detail"] == {"from": 4, "to": 8}
        assert cancelled["detail"] == {"status": "queued"}
        assert made["key"] not in (await core.get(AUDIT)).text

    async def test_what_changed_nothing_is_not_in_it(self, core: httpx.AsyncClient) -> None:
        headers = {"Idempotency-Key": "once"}
        task = (await core.post(TASKS, json=BODY, headers=headers)).json()
        path = f"{TASKS}/{task['id']}"
        await core.post(TASKS, json=BODY, headers=headers)
        await core.patch(f"{path}/priority?priority={task['priority']}")
        await core.post(TASKS, json=BODY | {"depends_on": [str(uuid.uuid4())]})
        await core.post(TASKS, json=BODY | {"priority": 11})
        await core.delete(path)
        await core.delete(path)
        await core.patch(f"{path}/priority?priority=1")
        await core.get(TASKS)
        assert [entry["kind"] for entry in (await core.get(AUDIT)).json()] == ["task_cancelled", "task_created"]

    async def test_a_batch_is_there_task_by_task(self, core: httpx.AsyncClient) -> None:
        made = await make(core)
        answer = await core.post(
            f"{TASKS}/batch", json=batch({"name": "a"}, {"depends_on": ["a"]}), headers=holder(made)
        )
        created = answer.json()
        gone = await core.delete(f"/api/v1/batches/{created['id']}", headers=holder(made))
        await core.delete(f"/api/v1/batches/{created['id']}")
        found = (await core.get(AUDIT, params={"actor_key_id": made["id"]})).json()
        for kind, of in (("task_created", answer), ("task_cancelled", gone)):
            entries = [entry for entry in found if entry["kind"] == kind]
            assert sorted(entry["task_id"] for entry in entries) == sorted(created["ids"])
            assert {entry["detail"]["batch"] for entry in entries} == {created["id"]}
            assert {entry["request_id"] for entry in entries} == {of.headers["x-request-id"]}
        assert len((await core.get(AUDIT)).json()) == len(found) + 1

    async def test_it_can_be_filtered_and_paged(self, core: httpx.AsyncClient) -> None:
        made = await make(core)
        first = (await core.post(TASKS, json=BODY, headers=holder(made))).json()["id"]
        middle = datetime.now(UTC).isoformat()
        second = await core.post(TASKS, json=BODY)

        async def kinds(**query: Any) -> list[str]:
            return [entry["kind"] for entry in (await core.get(AUDIT, params=query)).json()]

        assert await kinds() == ["task_created", "task_created", "key_created"]
        assert await kinds(limit=1, offset=2) == ["key_created"]
        assert await kinds(kind="key_created") == ["key_created"]
        assert await kinds(task_id=first) == ["task_created"]
        assert await kinds(key_id=made["id"]) == ["key_created"]
        assert await kinds(actor_key_id=made["id"]) == ["task_created"]
        assert await kinds(request_id=second.headers["x-request-id"]) == ["task_created"]
        assert await kinds(since=middle) == ["task_created"]
        assert await kinds(kind="task_created", since=middle, task_id=first) == []

    async def test_a_filter_that_makes_no_sense_is_refused(self, core: httpx.AsyncClient) -> None:
        wrong = ["task_id=x", "since=yesterday", "since=2025-01-01T00:00:00", "limit=0", "offset=-1", "kind=%00"]
        for query in wrong:
            assert problem(await core.get(f"{AUDIT}?{query}")) == (422, "validation_error"), query
