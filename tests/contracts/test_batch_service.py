"""What the batch routes rely on, against the double and against the real core on PostgreSQL (Prefect being away)."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_app import INFERENCE, problem, running_api
from tests.support.api_core import api_on_core, migrated_settings
from tests.support.waiting import wait_until

BATCH = "/api/v1/tasks/batch"


@pytest.fixture(params=["double", "core"])
async def client(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API over the one and the other."""
    if request.param == "double":
        async with running_api(tmp_path) as api:
            yield api.client
    else:
        async with api_on_core(await migrated_settings(tmp_path, database_url)) as real:
            yield real


def task(name: str | None = None, *depends_on: str, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"template": "ollama-inference", "parameters": INFERENCE} | fields
    made |= {"name": name} if name is not None else {}
    return made | ({"depends_on": list(depends_on)} if depends_on else {})


async def post(client: httpx.AsyncClient, *tasks: Any, **headers: str) -> httpx.Response:
    return await client.post(BATCH, json={"tasks": list(tasks)}, headers=headers)


async def batch_of(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/api/v1/batches/{batch_id}")).json()
    return found


async def total(client: httpx.AsyncClient) -> int:
    return int((await client.get("/api/v1/tasks", params={"limit": 1})).headers["x-total-count"])


async def test_a_batch_reads_as_it_was_accepted(client: httpx.AsyncClient) -> None:
    outside = (await client.post("/api/v1/tasks", json=task())).json()["id"]
    prompt = {"$result": "a", "path": "output"}
    tasks = [
        task("c", "b", outside),
        task("b", parameters=INFERENCE | {"prompt": prompt}, priority=9),
        task("a"),
        task(),
    ]
    made = (await post(client, *tasks)).json()
    ids = made["tasks"]
    assert list(ids) == ["c", "b", "a"]

    found = await batch_of(client, made["id"])
    assert found["created_at"] == made["created_at"]
    assert found["status"] == "queued"
    assert found["counts"] == {"queued": 4, "running": 0, "completed": 0, "failed": 0, "cancelled": 0}
    assert [(member["id"], member.get("name"), member["priority"]) for member in found["tasks"]] == [
        (made["ids"][0], "c", 5),
        (made["ids"][1], "b", 9),
        (made["ids"][2], "a", 5),
        (made["ids"][3], None, 5),
    ]
    assert [member["depends_on"] for member in found["tasks"]] == [[ids["b"], outside], [ids["a"]], [], []]
    alone = (await client.get(f"/api/v1/tasks/{ids['b']}")).json()
    assert (alone["batch_id"], alone["name"], alone["parameters"]["prompt"]) == (made["id"], "b", prompt)
    assert alone["depends_on"] == [ids["a"]]


async def test_all_or_none(client: httpx.AsyncClient) -> None:
    unknown = str(uuid.uuid4())
    answer = await post(client, task("a"), task("b", "a"), task("c", "b", unknown))
    assert problem(answer) == (404, "unknown_dependency")
    assert answer.json()["detail"].startswith("tasks[2] ('c'): ") and unknown in answer.json()["detail"]
    assert await total(client) == 0


async def test_what_was_cancelled_is_a_conflict_with_the_task_in_the_answer(client: httpx.AsyncClient) -> None:
    outside = (await client.post("/api/v1/tasks", json=task())).json()["id"]
    await client.delete(f"/api/v1/tasks/{outside}")

    async def refused() -> bool:
        answer = await post(client, task("a"), task(None, "a", outside))
        return problem(answer) == (409, "dependency_failed") and answer.json()["detail"].startswith("tasks[1]: ")

    await wait_until(refused, description="a dependency that was cancelled is a conflict")
    assert await total(client) == 1
    made = (await post(client, task("a", outside, on_dependency_failure="run"))).json()
    assert len(made["ids"]) == 1


async def test_twenty_equal_batches_at_once_under_one_key_are_one(client: httpx.AsyncClient) -> None:
    tasks = [task("b", "a"), task("a")]
    key = {"Idempotency-Key": "k" * 255}
    answers = await asyncio.gather(*(post(client, *tasks, **key) for _ in range(20)))
    found = Counter(answer.status_code for answer in answers)
    assert found[201] == 1
    assert set(found) <= {200, 201, 409}
    first = next(answer for answer in answers if answer.status_code == 201)
    again = await post(client, *tasks, **key)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json() == first.json()
    assert list(again.json()["tasks"]) == ["b", "a"]
    assert await total(client) == 2
    assert problem(await post(client, task("a"), **key)) == (422, "idempotency_mismatch")
    assert (await client.post("/api/v1/tasks", json=task(), headers=key)).status_code == 201


async def test_a_batch_is_cancelled_as_a_whole_and_again(client: httpx.AsyncClient) -> None:
    made = (await post(client, task("c", "b"), task("b", "a"), task("a"), task())).json()
    after = (
        await client.post("/api/v1/tasks", json=task(None, made["tasks"]["c"], on_dependency_failure="run"))
    ).json()
    doomed = (await client.post("/api/v1/tasks", json=task(None, made["tasks"]["c"]))).json()
    for _ in range(2):
        assert (await client.delete(f"/api/v1/batches/{made['id']}")).status_code == 204

    async def cancelled() -> bool:
        return (await batch_of(client, made["id"]))["counts"]["cancelled"] == 4

    await wait_until(cancelled, description="the batch is cancelled")
    assert (await batch_of(client, made["id"]))["status"] == "cancelled"
    assert (await client.get(f"/api/v1/tasks/{after['id']}")).json()["status"] == "queued"
    if (await client.get(f"/api/v1/tasks/{doomed['id']}")).json()["status"] == "cancelled":  # the double has no ends
        error = (await client.get(f"/api/v1/tasks/{doomed['id']}")).json()["error"]
        assert error["type"] == "dependency_failed"


async def test_the_largest_batch_is_accepted_in_the_order_of_its_dependencies(client: httpx.AsyncClient) -> None:
    chain = [task(f"t{number}", *([f"t{number - 1}"] if number else [])) for number in range(500)]
    made = (await post(client, *reversed(chain))).json()
    assert len(made["ids"]) == 500
    found = await batch_of(client, made["id"])
    assert [member["id"] for member in found["tasks"]] == made["ids"]
    assert [member["name"] for member in found["tasks"]] == [f"t{number}" for number in reversed(range(500))]
    assert (await client.delete(f"/api/v1/batches/{made['id']}")).status_code == 204

    async def cancelled() -> bool:
        return (await batch_of(client, made["id"]))["counts"]["cancelled"] == 500

    await wait_until(cancelled, timeout=50, description="all 500 are cancelled")


async def test_a_batch_nobody_has_is_not_found(client: httpx.AsyncClient) -> None:
    for method in ("GET", "DELETE"):
        answer = await client.request(method, f"/api/v1/batches/{uuid.uuid4()}")
        assert problem(answer) == (404, "not_found")
