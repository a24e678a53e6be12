"""Two tenants: what the one has does not exist for the other, over every operation of the OpenAPI document.

The second test plays the same requests in two worlds, one in which another tenant has tasks of every kind and one in
which it has none. Whoever can't tell the worlds apart has learned nothing, counts included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from api.models import FINAL, LIVE
from tests.support.api_app import INFERENCE
from tests.support.api_core import api_on_core, migrated_settings
from tests.support.servers import new_database

API = "/api/v1"
CANARY = "canary-of-the-other"
SHARED_KEY = "everybody-calls-it-this"
OPERATION = tuple[str, str, dict[str, Any]]


@dataclass
class World:
    """A running API, and what the tenant who looks at it knows by name."""

    operator: httpx.AsyncClient
    database_url: str
    #: Ids of another tenant's tasks, or of nobody's.
    others: list[str]
    operations: list[OPERATION]
    own: list[str] = field(default_factory=list)
    key: str = ""

    async def enter_as_somebody_new(self) -> None:
        """From now on the world is seen with a new key of a new tenant."""
        self.own = []
        self.key = await key_of(self.operator, f"tenant-{uuid.uuid4().hex}")

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {}) | {"X-API-Key": self.key}
        answer = await self.operator.request(method, path, headers=headers, **more)
        if method == "POST" and answer.status_code == 201:
            self.own += [answer.json()["id"], *answer.json().get("ids", ())]
        return answer

    def named(self, text: str) -> str:
        """`text` with ids as names and without times: what may be compared between worlds."""
        for kind, ids in (("own", self.own), ("other", self.others)):
            for number, task_id in enumerate(ids):
                text = text.replace(task_id, f"<{kind} {number}>")
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", "<time>", text)


@contextlib.asynccontextmanager
async def world(server: EmbeddedPostgres, home: Path, *, with_another: bool) -> AsyncIterator[World]:
    database_url = await new_database(server)
    async with api_on_core(await migrated_settings(home, database_url)) as operator:
        document = (await operator.get("/openapi.json")).json()
        operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            if path.startswith(API)
            for method, operation in methods.items()
        ]
        others = [str(uuid.uuid4()) for _ in range(8)]
        if with_another:
            others = await tasks_of_another(operator, database_url)
        assert len(others) == 8
        yield World(operator, database_url, others, operations)


async def key_of(operator: httpx.AsyncClient, tenant: str) -> str:
    answer = await operator.post(f"{API}/keys", json={"name": "someone", "tenant": tenant})
    assert answer.status_code == 201, answer.text
    key: str = answer.json()["key"]
    return key


async def tasks_of_another(operator: httpx.AsyncClient, database_url: str) -> list[str]:
    """Tasks of every status, with dependencies, an Idempotency-Key, results and errors; and at the end a batch."""
    headers = {"X-API-Key": await key_of(operator, "the-other")}
    made: list[str] = []
    for number in range(7):
        body = {
            "template": "ollama-inference",
            "parameters": INFERENCE | {"prompt": CANARY},
            "depends_on": made[:number],
        }
        once = {"Idempotency-Key": SHARED_KEY if number == 0 else f"{CANARY}-{number}"}
        answer = await operator.post(f"{API}/tasks", json=body, headers=headers | once)
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["id"])
    batch = await operator.post(
        f"{API}/tasks/batch",
        json=bodies(f"{API}/tasks/batch", [made[0]]),
        headers=headers | {"Idempotency-Key": SHARED_KEY},
    )
    assert batch.status_code == 201, batch.text
    connection = await asyncpg.connect(database_url)
    for task_id, status in zip(made, (*LIVE, *FINAL), strict=False):
        await connection.execute(
            "UPDATE task SET status = $2, phase = CASE WHEN $2 IN ('queued', 'running') THEN phase ELSE 'ended' END, "
            "result = $3, error = $3, started_at = now(), completed_at = now() WHERE id = $1::uuid",
            task_id,
            status,
            json.dumps({"output": CANARY, "type": CANARY, "message": CANARY}),
        )
    await connection.close()
    return [*made, batch.json()["id"]]


async def rows_of(world_: World, task_ids: list[str]) -> list[Any]:
    connection = await asyncpg.connect(world_.database_url)
    try:
        return await connection.fetch("SELECT * FROM task WHERE id = ANY($1::uuid[]) ORDER BY seq", task_ids)
    finally:
        await connection.close()


@pytest.fixture
async def one_world(postgres_server: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[World]:
    async with world(postgres_server, tmp_path, with_another=True) as opened:
        await opened.enter_as_somebody_new()
        yield opened


def bodies(path: str, depends_on: list[str]) -> dict[str, Any]:
    """Valid JSON for the operations that want a body; those of new operations are to be added here."""
    known: dict[str, Any] = {
        f"{API}/tasks": {"template": "ollama-inference", "parameters": INFERENCE, "depends_on": depends_on},
        f"{API}/tasks/batch": {
            "tasks": [
                {"name": "a", "template": "ollama-inference", "parameters": INFERENCE, "depends_on": depends_on},
                {
                    "name": "b",
                    "template": "ollama-inference",
                    "parameters": INFERENCE | {"prompt": {"$result": [*depends_on, "a"][0], "path": "output"}},
                },
            ]
        },
        f"{API}/templates/validate": INFERENCE,
        f"{API}/keys": {"name": "mine"},
        f"{API}/keys/{{key_id}}/rotate": {},
    }
    body: dict[str, Any] = known[path]
    return body


def queries(operation: dict[str, Any]) -> dict[str, str]:
    """Values for what the operation must be asked with."""
    known = {"priority": "9", "template_name": "ollama-inference"}
    wanted = [query for query in operation.get("parameters", ()) if query["in"] == "query" and query["required"]]
    return {query["name"]: known[query["name"]] for query in wanted}


async def test_no_operation_shows_or_changes_what_another_tenant_has(one_world: World) -> None:
    before = await rows_of(one_world, one_world.others)
    nobody = str(uuid.uuid4())
    for method, path, operation in one_world.operations:
        for other in one_world.others:
            more: dict[str, Any] = {"params": queries(operation), "headers": {"Idempotency-Key": SHARED_KEY}}
            body = bodies(path, [other]) if "requestBody" in operation else None
            answer = await one_world.ask(method, re.sub(r"\{\w+\}", other, path), json=body, **more)
            about = (method, path, answer.status_code, answer.text)
            assert CANARY not in answer.text, about
            assert int(answer.headers.get("x-total-count", "0")) <= len(one_world.own), about
            if ("{" in path and answer.status_code != 403) or (body and other in str(body)):
                assert answer.status_code == 404, about
            same = await one_world.ask(
                method,
                re.sub(r"\{\w+\}", nobody, path),
                json=json.loads(json.dumps(body).replace(other, nobody)),
                **more,
            )
            assert (answer.status_code, answer.text.replace(other, nobody)) == (same.status_code, same.text), about
    assert await rows_of(one_world, one_world.others) == before


SYMBOLS = st.one_of(
    st.tuples(st.just("own"), st.integers(0, 3)),
    st.tuples(st.just("other"), st.integers(0, 7)),
    st.tuples(st.just("nobody"), st.just(0)),
)
QUERIES = {
    "limit": st.integers(1, 3).map(str),
    "offset": st.integers(0, 3).map(str),
    "status": st.sampled_from([*LIVE, *FINAL]),
    "template": st.sampled_from(["ollama-inference", "every-type"]),
    "priority": st.integers(1, 10).map(str),
    "template_name": st.just("ollama-inference"),
}
NOBODY = "11111111-1111-4111-8111-111111111111"


def resolve(world_: World, symbol: tuple[str, int]) -> str:
    """The id that a symbol means in a world."""
    kind, number = symbol
    known = {"own": world_.own, "other": world_.others}.get(kind) or [NOBODY]
    return known[number % len(known)]


@dataclass(frozen=True)
class Step:
    """A request that can be sent in any world."""

    operation: OPERATION
    about: tuple[str, int]
    depends_on: tuple[tuple[str, int], ...]
    params: dict[str, str]
    idempotency_key: str | None

    async def take(self, world_: World) -> tuple[Any, ...]:
        """What came of it, in words that mean the same in every world."""
        method, path, operation = self.operation
        depends_on = [resolve(world_, symbol) for symbol in self.depends_on]
        answer = await world_.ask(
            method,
            re.sub(r"\{\w+\}", resolve(world_, self.about), path),
            params=self.params,
            json=bodies(path, depends_on) if "requestBody" in operation else None,
            headers={"Idempotency-Key": self.idempotency_key} if self.idempotency_key else {},
        )
        told = {name: answer.headers.get(name) for name in ("x-total-count", "location", "retry-after", "allow")}
        return method, path, answer.status_code, world_.named(answer.text), world_.named(str(told))


def steps(operations: list[OPERATION]) -> st.SearchStrategy[Step]:
    def of(operation: OPERATION) -> st.SearchStrategy[Step]:
        known = [query for query in operation[2].get("parameters", ()) if query["name"] in QUERIES]
        return st.builds(
            Step,
            operation=st.just(operation),
            about=SYMBOLS,
            depends_on=st.lists(SYMBOLS, max_size=2).map(tuple),
            params=st.fixed_dictionaries(
                {query["name"]: QUERIES[query["name"]] for query in known if query["required"]},
                optional={query["name"]: QUERIES[query["name"]] for query in known if not query["required"]},
            ),
            idempotency_key=st.none() | st.sampled_from([SHARED_KEY, f"{CANARY}-1"]),
        )

    # Most of the time something about tasks: of those there can be some to learn about.
    about_tasks = [operation for operation in operations if "/tasks" in operation[1]]
    return st.sampled_from(about_tasks * 3 + operations).flatmap(of)


@pytest.fixture
def two_worlds(postgres_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[tuple[asyncio.Runner, World, World]]:
    """One with another tenant's tasks and one without, in an event loop of their own."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opened = [
            runner.run(stack.enter_async_context(world(postgres_server, tmp_path / name, with_another=another)))
            for name, another in (("with", True), ("without", False))
        ]
        yield runner, opened[0], opened[1]
        runner.run(stack.aclose())


def test_no_sequence_of_requests_tells_whether_another_tenant_has_anything(
    two_worlds: tuple[asyncio.Runner, World, World],
) -> None:
    runner, *worlds = two_worlds

    async def play(script: list[Step]) -> None:
        for each in worlds:
            await each.enter_as_somebody_new()
        for step in script:
            with_another, without = [await step.take(each) for each in worlds]
            assert with_another == without

    @settings(
        max_examples=12, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(steps(worlds[0].operations), min_size=5, max_size=10))
    def every_script(script: list[Step]) -> None:
        runner.run(play(script))

    every_script()
