"""What the routes rely on, against the core's double and against the real core on PostgreSQL (Prefect being away)."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import reference
from tests.support.api_app import INFERENCE, problem, running_api
from tests.support.api_core import api_on_core, migrated_settings
from tests.support.waiting import wait_until

EXAMPLES = {endpoint.title: endpoint for endpoint in reference.endpoints()}
BODY: dict[str, Any] = {"template": "ollama-inference", "parameters": INFERENCE}
TASKS = "/api/v1/tasks"


@pytest.fixture(params=["double", "core"])
async def client(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API over the one and the other."""
    if request.param == "double":
        async with running_api(tmp_path) as api:
            yield api.client
    else:
        async with api_on_core(await migrated_settings(tmp_path, database_url)) as real:
            yield real


async def submit(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(TASKS, json=BODY | fields)
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


async def ids(client: httpx.AsyncClient, **query: Any) -> list[str]:
    return [task["id"] for task in (await client.get(TASKS, params=query)).json()]


async def test_a_task_reads_as_it_was_accepted(client: httpx.AsyncClient) -> None:
    parent = await submit(client)
    created = await submit(client, priority=9, depends_on=[parent["id"]] * 3)
    assert reference.differences(EXAMPLES["Create a Task"].response, created) == []
    assert created["depends_on"] == [parent["id"]]
    read = (await client.get(f"{TASKS}/{created['id']}")).json()
    assert read == created | {"attempts": []}


async def test_parameters_come_back_exactly(client: httpx.AsyncClient) -> None:
    numbers = {"float": 1e308, "large": 1e22, "whole": 3.0, "integer": 2**63 - 1, "nothing": None}
    options = {"z": numbers, "a": ["order of names", []], "\x1b": "{{x}} \u202e😀"}
    created = await submit(client, template="every-type", parameters={"seconds": 1, "options": options})
    read = (await client.get(f"{TASKS}/{created['id']}")).json()["parameters"]["options"]
    assert json.dumps(read) == json.dumps(options)


async def test_lists_are_newest_first_filtered_paged_and_counted(client: httpx.AsyncClient) -> None:
    made = [(await submit(client))["id"] for _ in range(4)]
    other = (await submit(client, template="every-type", parameters={"seconds": 1}))["id"]
    assert await ids(client) == [other, *reversed(made)]
    assert await ids(client, template="ollama-inference", limit=2, offset=1) == [made[2], made[1]]
    assert await ids(client, status="completed") == []
    answer = await client.get(TASKS, params={"template": "ollama-inference", "limit": 1})
    assert answer.headers["x-total-count"] == "4"
    assert (await client.get(TASKS, params={"offset": 10**9})).json() == []
    groups = (await client.get(f"{TASKS}/status", params={"limit": 3})).json()
    assert [task["id"] for task in groups["queued"]] == [other, made[3], made[2]]


async def test_an_unknown_dependency_is_named_and_nothing_is_stored(client: httpx.AsyncClient) -> None:
    known, unknown = (await submit(client))["id"], str(uuid.uuid4())
    answer = await client.post(TASKS, json=BODY | {"depends_on": [known, unknown]})
    assert problem(answer) == (404, "unknown_dependency")
    assert unknown in answer.json()["detail"]
    assert await ids(client) == [known]


async def test_a_thousand_dependencies_are_accepted(client: httpx.AsyncClient) -> None:
    parents = [(await submit(client))["id"] for _ in range(5)]
    assert (await submit(client, depends_on=parents * 200))["depends_on"] == parents


async def test_one_idempotency_key_makes_one_task(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k" * 255}
    answers = await asyncio.gather(*(client.post(TASKS, json=BODY, headers=headers) for _ in range(12)))
    found = Counter(answer.status_code for answer in answers)
    assert found[201] == 1
    assert set(found) <= {200, 201, 409}
    again = await client.post(TASKS, json=BODY, headers=headers)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert await ids(client) == [again.json()["id"]]
    other = await client.post(TASKS, json=BODY | {"priority": 1}, headers=headers)
    assert problem(other) == (422, "idempotency_mismatch")


async def test_a_queued_tasks_priority_can_be_changed(client: httpx.AsyncClient) -> None:
    task_id = (await submit(client))["id"]
    answer = await client.patch(f"{TASKS}/{task_id}/priority", params={"priority": 10})
    assert (answer.status_code, answer.json()) == (200, {"id": task_id, "priority": 10, "status": "queued"})
    assert (await client.get(f"{TASKS}/{task_id}")).json()["priority"] == 10


async def test_a_cancelled_task_stays_so_and_can_be_cancelled_again(client: httpx.AsyncClient) -> None:
    task_id = (await submit(client))["id"]
    assert (await client.delete(f"{TASKS}/{task_id}")).status_code == 204

    async def status() -> bool:
        return bool((await client.get(f"{TASKS}/{task_id}")).json()["status"] == "cancelled")

    await wait_until(status, description="the task is cancelled")
    assert (await client.delete(f"{TASKS}/{task_id}")).status_code == 204
    patched = await client.patch(f"{TASKS}/{task_id}/priority", params={"priority": 1})
    assert problem(patched) == (409, "conflict")
    read = (await client.get(f"{TASKS}/{task_id}")).json()
    assert read["completed_at"] > read["created_at"]
    assert await ids(client, status="cancelled") == [task_id]


async def test_what_waits_for_a_cancelled_task_is_refused_or_runs_anyway(client: httpx.AsyncClient) -> None:
    task_id = (await submit(client))["id"]
    await client.delete(f"{TASKS}/{task_id}")

    async def refused() -> bool:
        answer = await client.post(TASKS, json=BODY | {"depends_on": [task_id]})
        return answer.status_code == 409 and answer.json()["code"] == "dependency_failed"

    await wait_until(refused, description="a dependency that was cancelled is a conflict")
    created = await submit(client, depends_on=[task_id], on_dependency_failure="run")
    assert created["on_dependency_failure"] == "run"


async def test_a_task_nobody_has_is_not_found(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", "/priority?priority=1"), ("GET", "/logs")):
        answer = await client.request(method, f"{TASKS}/{uuid.uuid4()}{path}")
        assert problem(answer) == (404, "not_found")
