"""Whole graphs: they end as their edges and policies say, in an order that respects them, or are cancelled as one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.protocol import STATE_HELD, STATE_QUEUED
from tests.support.graph_bench import GraphBench, open_graph_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


@pytest.fixture
async def graph(tmp_path: Path, database_url: str, prefect: PrefectDouble) -> AsyncIterator[GraphBench]:
    async with open_graph_bench(tmp_path, database_url, prefect) as opened:
        yield opened


def deed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Joins the texts it was given to its own name; a task whose count is 13 fails."""
    if parameters.get("count") == 13:
        raise ZeroDivisionError
    return {"output": "".join([*parameters.get("items", []), parameters["text"]])}


def task(name: str, *uses: str, **fields: Any) -> dict[str, Any]:
    """A task that uses the results of others."""
    parameters = {"text": name, "items": [{"$result": other} for other in uses]}
    return {"name": name, "parameters": parameters | fields.pop("parameters", {})} | fields


async def ended(graph: GraphBench, ids: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The batch's tasks by name, once all have ended."""

    async def look() -> Any:
        batch = (await graph.client.get(f"/batches/{ids['']}")).json()
        return batch if batch["status"] not in ("queued", "running") else None

    batch = await wait_until(look, timeout=50, description="the batch has ended")
    return {member["name"]: member for member in batch["tasks"]}


async def test_a_graph_of_twenty_ends_as_specified(graph: GraphBench) -> None:
    diamonds = [
        task("a"),
        task("b", "a"),
        task("c", "a"),
        task("d", "b", "c"),
        task("e", "d"),
        task("f", "d", priority=9),
        task("g", "e", "f"),
        task("h"),
        task("i", "h", "a"),
        task("j", "i", "g"),
        task("k", depends_on=["j", "d"]),
    ]
    branch = [
        task("l", parameters={"count": 13}),
        task("m", "l"),
        task("n", depends_on=["m", "a"]),
        task("o", depends_on=["n"]),
        task("p", depends_on=["l"], on_dependency_failure="run"),
        task("q", "p"),
        task("r", "l", on_dependency_failure="run"),
        task("s", depends_on=["o", "k"], on_dependency_failure="run"),
        task("t", "s", "q"),
    ]
    async with graph.worker(deed):
        ids = await graph.batch(*reversed(diamonds), *branch)
        found = await ended(graph, ids)

    statuses = {name: member["status"] for name, member in found.items()}
    assert statuses == dict.fromkeys("abcdefghijkpqst", "completed") | dict.fromkeys("mno", "cancelled") | {
        "l": "failed",
        "r": "failed",
    }
    assert found["r"]["error"]["type"] == "reference"
    assert all(found[name]["error"]["type"] == "dependency_failed" for name in "mno")
    assert (await graph.get(ids["g"]))["result"] == {"output": "abacdeabacdfg"}
    assert (await graph.get(ids["j"]))["result"] == {"output": "haiabacdeabacdfgj"}
    assert (await graph.get(ids["t"]))["result"] == {"output": "spqt"}
    order = [parameters["text"] for parameters in graph.ran]
    assert sorted(order) == sorted("abcdefghijkpqstl")
    for member in diamonds + branch:
        needs = [*member.get("depends_on", []), *(each["$result"] for each in member["parameters"]["items"])]
        if member["name"] in order:
            done = order[: order.index(member["name"])]
            assert all(need in done for need in needs if statuses[need] in ("completed", "failed"))
    batch = (await graph.client.get(f"/batches/{ids['']}")).json()
    assert batch["counts"] == {"queued": 0, "running": 0, "completed": 15, "failed": 2, "cancelled": 3}
    assert batch["status"] == "failed"


async def test_locks_are_taken_in_the_order_of_dependencies_so_rows_are_written_in_it(graph: GraphBench) -> None:
    """Were it otherwise, two ends could wait for each other's rows."""
    outside = await graph.task()
    tasks = [task(f"t{number}", *([f"t{number - 1}"] if number else [])) for number in range(40)]
    await graph.batch(*reversed(tasks), task("last", "t39", depends_on=[outside]))
    edges = """
        SELECT up.seq < down.seq AS right_way
        FROM dependency d JOIN task up ON up.id = d.upstream_id JOIN task down ON down.id = d.task_id
    """
    assert [row["right_way"] for row in await graph.sql(edges)] == [True] * 41


def outcomes(tasks: list[dict[str, Any]]) -> dict[str, str]:
    """What must become of tasks whose dependencies stand before them."""
    known: dict[str, str] = {}
    for each in tasks:
        used = [part["$result"] for part in each["parameters"]["items"]]
        bad = [name for name in {*each.get("depends_on", []), *used} if known[name] != "completed"]
        if bad and each.get("on_dependency_failure") != "run":
            known[each["name"]] = "cancelled"
        elif any(known[name] != "completed" for name in used) or each["parameters"].get("count") == 13:
            known[each["name"]] = "failed"
        else:
            known[each["name"]] = "completed"
    return known


@pytest.mark.parametrize("seed", range(3))
async def test_any_graph_ends_as_its_edges_say(graph: GraphBench, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    tasks: list[dict[str, Any]] = []
    for number in range(30):
        before = [each["name"] for each in tasks[-8:]]
        uses = chance.sample(before, min(len(before), chance.choice([0, 0, 1, 2])))
        waits = chance.sample(before, min(len(before), chance.choice([0, 1, 1, 3])))
        fields: dict[str, Any] = {"depends_on": waits, "priority": chance.randint(1, 10)}
        fields |= {"on_dependency_failure": "run"} if chance.random() < 0.4 else {}
        tasks.append(task(f"t{number}", *uses, parameters={"count": 13} if chance.random() < 0.1 else {}, **fields))
    expected = outcomes(tasks)
    shuffled = chance.sample(tasks, len(tasks))
    async with graph.worker(deed):
        found = await ended(graph, await graph.batch(*shuffled))
    assert {name: member["status"] for name, member in found.items()} == expected
    ran = {parameters["text"] for parameters in graph.ran}
    assert len(ran) == len(graph.ran)
    assert {name for name, status in expected.items() if status == "cancelled"}.isdisjoint(ran)


async def test_a_batch_is_cancelled_in_every_state_of_its_tasks(graph: GraphBench, prefect: PrefectDouble) -> None:
    ids = await graph.batch(task("done"), task("runs"), task("waits", "runs"), task("queued"), task("last", "waits"))
    after = await graph.task(parameters={"text": "x"}, depends_on=[ids["last"]])
    anyway = await graph.task(parameters={"text": "x"}, depends_on=[ids["waits"]], on_dependency_failure="run")
    await graph.complete(ids["done"], {"output": "x"})
    running = await graph.run_of(ids["runs"], STATE_QUEUED)
    await prefect.start(running["id"])
    await graph.status(ids["runs"], "running")
    held = await graph.run_of(ids["waits"], STATE_HELD)

    for _ in range(2):
        assert (await graph.client.delete(f"/batches/{ids['']}")).status_code == 204
    for name in ("waits", "last"):  # at once: nobody can have begun them
        found_at_once = await graph.get(ids[name])
        assert (found_at_once["status"], "error" in found_at_once) == ("cancelled", False)
    assert (await graph.run_of(ids["waits"], "Cancelled"))["id"] == held["id"]
    await graph.run_of(ids["runs"], "Cancelling")
    await prefect.set(running["id"], "CANCELLED", force=True)
    found = await ended(graph, ids)
    assert {name: member["status"] for name, member in found.items()} == {
        "done": "completed",
        "runs": "cancelled",
        "waits": "cancelled",
        "queued": "cancelled",
        "last": "cancelled",
    }
    assert (await graph.status(after, "cancelled"))["error"]["type"] == "dependency_failed"
    await graph.run_of(anyway, STATE_QUEUED)
    assert (await graph.client.get(f"/batches/{ids['']}")).json()["status"] == "cancelled"


async def test_a_batch_larger_than_the_window_in_prefect_is_worked_off(
    tmp_path: Path, database_url: str, prefect: PrefectDouble
) -> None:
    async with open_graph_bench(tmp_path, database_url, prefect, dispatch_window=5) as graph, graph.worker(deed):
        chains = [task(f"{chain}-{n}", *([f"{chain}-{n - 1}"] if n else [])) for n in range(10) for chain in "ab"]
        found = await ended(graph, await graph.batch(*chains))
        assert {member["status"] for member in found.values()} == {"completed"}
