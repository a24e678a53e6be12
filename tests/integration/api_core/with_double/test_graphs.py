"""What Prefect's graphs show: the dependencies of a run, and a batch as one group."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from ai_task_orchestra.protocol import LABEL_DEPENDENCIES, STATE_HELD, STATE_QUEUED, dependency_node, run_name
from api.prefect_http import PrefectRefusedError
from tests.support.graph_bench import GraphBench, open_graph_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


@pytest.fixture
async def graph(tmp_path: Path, database_url: str, prefect: PrefectDouble) -> AsyncIterator[GraphBench]:
    async with open_graph_bench(tmp_path, database_url, prefect) as opened:
        yield opened


async def shown(graph: GraphBench, run_id: str, names: int) -> dict[str, tuple[str, set[str]]]:
    """The graph of a run once it has so many nodes."""
    return await wait_until(
        lambda: found if len(found := graph.prefect.graph(run_id)) == names else None,
        timeout=40,
        description=f"{names} nodes in the graph of {run_id}",
    )


async def begin(graph: GraphBench, task_id: str) -> str:
    run = await graph.run_of(task_id, STATE_QUEUED)
    await graph.prefect.start(run["id"])
    await graph.status(task_id, "running")
    return str(run["id"])


async def group_of(graph: GraphBench, batch_id: str, state: str = "Running") -> str:
    """The flow run that stands for a batch, once it is in this state."""

    def look() -> str | None:
        runs = [run for run in graph.prefect.known.values() if run.idempotency_key == f"batch:{batch_id}"]
        return str(runs[0].id) if runs and runs[0].state.name == state else None

    return await wait_until(look, timeout=40, description=f"a group that is {state}")


async def test_a_dependents_graph_begins_with_what_it_waited_for(graph: GraphBench, prefect: PrefectDouble) -> None:
    good, bad = await graph.task(), await graph.task()
    last = await graph.task(depends_on=[good, bad], on_dependency_failure="run")
    held = await graph.run_of(last, STATE_HELD)
    assert prefect.known[UUID(held["id"])].labels[LABEL_DEPENDENCIES] == "2"
    await graph.complete(good, {"output": "x"})
    await graph.fail(bad)
    await graph.run_of(last, STATE_QUEUED)
    assert prefect.graph(held["id"]) == {}

    await begin(graph, last)

    found = await shown(graph, held["id"], 2)
    assert found == {run_name("work", good): ("COMPLETED", set()), run_name("work", bad): ("FAILED", set())}
    nodes = prefect.nodes[UUID(held["id"])]
    assert set(nodes) == {dependency_node(UUID(held["id"]), number) for number in range(2)}
    assert {node.start for node in nodes.values()} == {prefect.known[UUID(held["id"])].start_time}
    first = nodes[dependency_node(UUID(held["id"]), 0)]
    link = f"(/runs/flow-run/{(await graph.get(good))['flow_run_id']})"
    await wait_until(lambda: link in "".join(prefect.notes.get(first.id, [])), description="a link on the node")


async def test_a_task_without_dependencies_costs_nothing(graph: GraphBench, prefect: PrefectDouble) -> None:
    alone = await graph.task()
    run_id = await begin(graph, alone)
    assert LABEL_DEPENDENCIES not in prefect.known[UUID(run_id)].labels
    after = await graph.task(depends_on=[alone])
    await prefect.complete(run_id, {"output": "x"})
    await shown(graph, await begin(graph, after), 1)
    assert prefect.calls.count("record_nodes") == 1
    assert prefect.graph(run_id) == {}
    assert "create_group" not in prefect.calls


async def test_more_than_fifty_dependencies_share_a_last_node(graph: GraphBench, prefect: PrefectDouble) -> None:
    written = """
        INSERT INTO task (id, tenant, template, parameters, priority, work_pool, status, phase, flow_run_id)
        SELECT gen_random_uuid(), 'default', 'work', '{}', 5, 'pool', 'completed', 'ended', gen_random_uuid()
        FROM generate_series(1, 53) RETURNING id
    """
    ids = [str(row["id"]) for row in await graph.sql(written)]
    last = await graph.task(depends_on=ids)
    run_id = await begin(graph, last)
    assert prefect.known[UUID(run_id)].labels[LABEL_DEPENDENCIES] == "51"
    found = await shown(graph, run_id, 51)
    assert "and 3 more" in found and run_name("work", ids[49]) in found and run_name("work", ids[50]) not in found
    rest = dependency_node(UUID(run_id), 50)
    await wait_until(lambda: prefect.notes.get(rest), description="links on the last node")
    assert [run_name("work", task_id) in prefect.notes[rest][0] for task_id in ids[49:]] == [False, True, True, True]


async def test_every_attempt_has_a_graph_of_its_own(graph: GraphBench, prefect: PrefectDouble) -> None:
    first = await graph.task()
    await graph.complete(first, {"output": "x"})
    second = await graph.task(depends_on=[first])
    lost = await begin(graph, second)
    await shown(graph, lost, 1)
    await prefect.set(lost, "CRASHED", force=True)
    again = await graph.run_of(second, STATE_QUEUED, other_than=lost)
    await begin(graph, second)
    await shown(graph, again["id"], 1)


async def test_a_task_that_failed_for_a_reference_shows_what_it_waited_for(graph: GraphBench) -> None:
    first = await graph.task()
    await graph.complete(first, {"output": "x"})
    second = await graph.task(parameters={"text": {"$result": first, "path": "no"}})
    failed = await graph.status(second, "failed")
    await shown(graph, failed["flow_run_id"], 1)


@pytest.mark.parametrize("method", ["record_nodes", "write_note"])
async def test_what_was_interrupted_is_shown_by_the_next_process(
    tmp_path: Path, database_url: str, prefect: PrefectDouble, method: str
) -> None:
    async with open_graph_bench(tmp_path, database_url, prefect) as graph:
        stop = prefect.stop(method, "before")
        first = await graph.task()
        await graph.complete(first, {"output": "x"})
        run_id = await begin(graph, await graph.task(depends_on=[first]))
        await wait_until(stop.reached.is_set, timeout=40, description=f"a call of {method} stands")
    prefect.go_on()
    async with open_graph_bench(tmp_path, database_url, prefect) as graph:
        await shown(graph, run_id, 1)
        node = dependency_node(UUID(run_id), 0)
        await wait_until(lambda: prefect.notes.get(node), timeout=40, description="a link on the node")


async def test_what_prefect_refuses_to_show_keeps_nothing_else_back(
    graph: GraphBench, prefect: PrefectDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await graph.task()
    await graph.complete(first, {"output": "x"})
    refused, fine = [await graph.task(depends_on=[first]) for _ in range(2)]
    refused_run = (await graph.run_of(refused, STATE_QUEUED))["id"]
    record = prefect.record_nodes

    async def refuse(nodes: Any) -> None:
        if nodes[0].flow_run_id == UUID(refused_run):
            raise PrefectRefusedError("Prefect refused the request (422)", status=422)
        await record(nodes)

    monkeypatch.setattr(prefect, "record_nodes", refuse)
    await begin(graph, refused)
    await shown(graph, await begin(graph, fine), 1)


def task(name: str, *depends_on: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "depends_on": list(depends_on)} | fields


async def test_a_batch_is_one_group_that_ends_with_its_last_task(graph: GraphBench, prefect: PrefectDouble) -> None:
    ids = await graph.batch(task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"), {"depends_on": ["c"]})
    group = await group_of(graph, ids[""])
    unnamed = (await graph.client.get(f"/batches/{ids['']}")).json()["tasks"][4]["id"]
    edges = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, run_name("work", unnamed): {"c"}}
    found = await shown(graph, group, 5)
    assert found == {name: ("PENDING", waits) for name, waits in edges.items()}

    running = await begin(graph, ids["a"])
    await wait_until(lambda: prefect.graph(group)["a"][0] == "RUNNING", timeout=40, description="a runs")
    await prefect.complete(running, {"output": "x"})
    async with graph.worker(lambda _: {"output": "x"}):
        assert await group_of(graph, ids[""], "Completed") == group
    assert prefect.graph(group) == {name: ("COMPLETED", waits) for name, waits in edges.items()}
    assert prefect.known[UUID(group)].state.message == "5 completed."
    node = next(node for node in prefect.nodes[UUID(group)].values() if node.name == "a")
    assert f"(/runs/flow-run/{running})" in prefect.notes[node.id][0]
    assert node.start < (node.end or node.start)


async def test_a_group_is_no_task_and_its_tasks_runs_know_nothing_of_it(
    graph: GraphBench, prefect: PrefectDouble
) -> None:
    ids = await graph.batch(task("a"))
    group = await group_of(graph, ids[""])
    run = await graph.run_of(ids["a"], STATE_QUEUED)
    assert f"batch:{ids['']}" in run["tags"]
    await prefect.set(group, "RUNNING", force=True)  # one more event about it
    await graph.complete(ids["a"], {"output": "x"})
    await group_of(graph, ids[""], "Completed")
    listed = (await graph.client.get("/tasks")).json()
    assert [each["id"] for each in listed] == [ids["a"]]


@pytest.mark.parametrize(("deed", "state"), [("fail", "Failed"), ("cancel", "Cancelled")])
async def test_the_worst_end_is_the_groups(graph: GraphBench, deed: str, state: str) -> None:
    ids = await graph.batch(task("a"), task("b"), task("c", "b"))
    await graph.complete(ids["a"], {"output": "x"})
    if deed == "fail":
        await graph.fail(ids["b"])
    else:
        await graph.client.delete(f"/tasks/{ids['b']}")
    group = await group_of(graph, ids[""], state)
    worst = {"fail": "FAILED", "cancel": "CANCELLED"}[deed]
    states = {name: word for name, (word, _) in graph.prefect.graph(group).items()}
    assert states == {"a": "COMPLETED", "b": worst, "c": "CANCELLED"}


async def test_cancelling_a_group_in_prefect_cancels_the_batch(graph: GraphBench, prefect: PrefectDouble) -> None:
    ids = await graph.batch(task("a"), task("b", "a"))
    group = await group_of(graph, ids[""])
    await graph.run_of(ids["a"], STATE_QUEUED)
    await prefect.set(group, "CANCELLING")
    for name in "ab":
        await graph.status(ids[name], "cancelled")
    await group_of(graph, ids[""], "Cancelled")


async def test_a_batch_goes_on_without_a_group_that_was_deleted(graph: GraphBench, prefect: PrefectDouble) -> None:
    ids = await graph.batch(task("a"), task("b", "a"))
    await prefect.delete(await group_of(graph, ids[""]))
    await graph.complete(ids["a"], {"output": "x"})
    await graph.complete(ids["b"], {"output": "x"})

    async def closed() -> bool:
        return (await graph.sql("SELECT closed_at FROM batch"))[0]["closed_at"] is not None

    await wait_until(closed, timeout=40, description="the group is let go")
    assert (await graph.client.get(f"/batches/{ids['']}")).json()["status"] == "completed"
    assert prefect.calls.count("create_group") == 1


async def test_a_group_shows_tasks_that_have_no_run_yet(
    tmp_path: Path, database_url: str, prefect: PrefectDouble
) -> None:
    async with open_graph_bench(tmp_path, database_url, prefect, dispatch_window=2) as graph:
        ids = await graph.batch(*(task(f"t{number}") for number in range(10)))
        await shown(graph, await group_of(graph, ids[""]), 10)
        made = [run for run in prefect.known.values() if run.work_pool]
        assert len(made) < 10


@pytest.mark.parametrize(("method", "when"), [("create_group", "after"), ("record_nodes", "after")])
async def test_a_group_that_was_interrupted_is_finished_by_the_next_process(
    tmp_path: Path, database_url: str, prefect: PrefectDouble, method: str, when: str
) -> None:
    async with open_graph_bench(tmp_path, database_url, prefect) as graph:
        stop = prefect.stop(method, when)
        ids = await graph.batch(task("a"), task("b", "a"))
        await wait_until(stop.reached.is_set, timeout=40, description=f"a call of {method} stands")
    prefect.go_on()
    async with open_graph_bench(tmp_path, database_url, prefect) as graph, graph.worker(lambda _: {"output": "x"}):
        group = await group_of(graph, ids[""], "Completed")
        assert prefect.graph(group) == {"a": ("COMPLETED", set()), "b": ("COMPLETED", {"a"})}
        assert len([run for run in prefect.known.values() if run.work_pool is None]) == 1
