"""References to results: filled in when the task is released, and what happens when they can't be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from ai_task_orchestra.protocol import STATE_HELD, STATE_QUEUED, TAG_AWAITING_RESULTS
from api import dispatcher
from api.prefect_http import PrefectRefusedError
from api.prefect_types import FINAL_STATES
from tests.support.graph_bench import GraphBench, open_graph_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until


@pytest.fixture
async def graph(tmp_path: Path, database_url: str, prefect: PrefectDouble) -> AsyncIterator[GraphBench]:
    async with open_graph_bench(tmp_path, database_url, prefect, max_parameters_bytes=4000) as opened:
        yield opened


def ref(task: str, path: str | None = None) -> dict[str, str]:
    return {"$result": task} | ({} if path is None else {"path": path})


RESULT = {"output": "text", "n": 7, "files": [{"name": "a", "tags": ["x", None]}]}


async def test_references_are_replaced_by_type_when_the_task_is_released(graph: GraphBench) -> None:
    given = {
        "text": ref("draft"),
        "count": ref("draft", "n"),
        "items": [ref("draft", "files.0.name"), "$result", {"deep": ref("draft", "files")}],
        "options": {"all": ref("draft", ""), "text": '{"$result": "draft"}'},
    }
    ids = await graph.batch({"name": "draft"}, {"name": "review", "parameters": given})
    held = await graph.run_of(ids["review"], STATE_HELD)
    assert held["parameters"] == given
    assert TAG_AWAITING_RESULTS in held["tags"] and f"batch:{ids['']}" in held["tags"]

    await graph.complete(ids["draft"], RESULT)

    run = await graph.run_of(ids["review"], STATE_QUEUED)
    assert run["id"] == held["id"]
    assert run["parameters"] == {
        "text": "text",
        "count": 7,
        "items": ["a", "$result", {"deep": RESULT["files"]}],
        "options": {"all": RESULT, "text": '{"$result": "draft"}'},
    }
    assert set(run["tags"]) == set(held["tags"]) - {TAG_AWAITING_RESULTS}
    shown = await graph.get(ids["review"])
    assert shown["parameters"] == given
    assert shown["depends_on"] == [ids["draft"]]


async def test_what_a_result_holds_is_data_and_no_reference(graph: GraphBench) -> None:
    tricky = {"output": {"$result": "draft", "path": "output"}, "braces": "{{ text }}"}
    ids = await graph.batch(
        {"name": "draft"}, {"name": "review", "parameters": {"options": ref("draft"), "text": ref("draft", "braces")}}
    )
    await graph.complete(ids["draft"], tricky)
    run = await graph.run_of(ids["review"], STATE_QUEUED)
    assert run["parameters"] == {"options": tricky["output"], "text": "{{ text }}"}


async def test_a_task_that_refers_to_finished_ones_gets_their_results(graph: GraphBench) -> None:
    first = await graph.task()
    await graph.complete(first, RESULT)
    second = await graph.task(parameters={"text": ref(first)})
    run = await graph.run_of(second, STATE_QUEUED)
    assert run["parameters"] == {"text": "text"}
    assert TAG_AWAITING_RESULTS not in run["tags"]
    assert (await graph.get(second))["depends_on"] == [first]


async def test_another_priority_and_another_attempt_get_the_results_again(graph: GraphBench) -> None:
    first = await graph.task()
    second = await graph.task(parameters={"text": ref(first)})
    await graph.run_of(second, STATE_HELD)
    assert (await graph.client.patch(f"/tasks/{second}/priority?priority=7")).status_code == 200
    held = await graph.run_of(second, STATE_HELD)
    assert held["parameters"] == {"text": ref(first)}
    await graph.complete(first, RESULT)
    released = await graph.run_of(second, STATE_QUEUED)

    assert (await graph.client.patch(f"/tasks/{second}/priority?priority=9")).status_code == 200
    moved = await graph.run_of(second, STATE_QUEUED, other_than=released["id"])
    assert moved["parameters"] == {"text": "text"}
    assert "priority-9" in moved["tags"]

    await graph.prefect.start(moved["id"])
    await graph.prefect.set(moved["id"], "CRASHED", force=True)
    again = await graph.run_of(second, STATE_QUEUED, other_than=moved["id"])
    assert again["parameters"] == {"text": "text"}


async def failed(graph: GraphBench, parameters: dict[str, Any], result: Any) -> dict[str, Any]:
    """The error of a task with these parameters, after `draft` has ended with this result."""
    ids = await graph.batch({"name": "draft"}, {"name": "review", "parameters": parameters})
    held = await graph.run_of(ids["review"], STATE_HELD)
    await graph.complete(ids["draft"], result)
    found = await graph.status(ids["review"], "failed")
    run = await graph.prefect.run(held["id"])
    assert run is not None and run["state_type"] == "FAILED"
    assert graph.prefect.known[UUID(held["id"])].state.message == found["error"]["message"]
    assert found["attempts"] == [] and "started_at" not in found
    error: dict[str, Any] = found["error"]
    assert error.keys() == {"type", "message"} and error["type"] == "reference"
    assert "'draft'" in error["message"] and ids["draft"] in error["message"]
    return error


async def test_a_missing_path_fails_the_task_and_names_parameter_task_and_path(graph: GraphBench) -> None:
    error = await failed(graph, {"text": "t", "items": [ref("draft", "files.3.name")]}, RESULT)
    assert "parameter 'items'" in error["message"] and "'files.3.name'" in error["message"]
    assert "nothing there" in error["message"]


@pytest.mark.parametrize(
    ("parameters", "result", "reason"),
    [
        ({"text": ref("draft", "n")}, RESULT, "must be a string, not an integer"),
        ({"count": ref("draft", "n")}, {"n": 0}, "at least 1"),
        ({"count": ref("draft", "n")}, {"n": True}, "must be an integer"),
        ({"text": ref("draft")}, {"output": None}, "null"),
        ({"items": [1, ref("draft")]}, {"output": {"__prefect_kind": "jinja", "template": "x"}}, "__prefect_kind"),
        ({"options": {"a": ref("draft")}}, {"output": ["a\0b"]}, "NUL"),
        ({"options": {"a": ref("draft")}}, {"output": 10**30}, "64 bits"),
        ({"text": ref("draft")}, {"output": "x" * 4000}, "larger than 4000 bytes"),
        ({"items": [ref("draft")] * 50}, {"output": "x" * 100}, "larger than 4000 bytes"),
    ],
)
async def test_a_result_that_does_not_fit_fails_the_task(
    graph: GraphBench, parameters: dict[str, Any], result: Any, reason: str
) -> None:
    error = await failed(graph, parameters, result)
    assert reason in error["message"]
    assert f"parameter {next(iter(parameters))!r}" in error["message"]


async def test_a_failed_task_has_no_result_for_one_that_runs_anyway(graph: GraphBench) -> None:
    ids = await graph.batch(
        {"name": "draft"},
        {"name": "review", "parameters": {"text": ref("draft")}, "on_dependency_failure": "run"},
        {"name": "clean-up", "depends_on": ["review"], "on_dependency_failure": "run"},
        {"name": "publish", "depends_on": ["review"]},
    )
    await graph.fail(ids["draft"])
    error = (await graph.status(ids["review"], "failed"))["error"]
    assert error["type"] == "reference"
    assert "failed and has no result" in error["message"] and ids["draft"] in error["message"]
    await graph.status(ids["publish"], "cancelled")
    await graph.run_of(ids["clean-up"], STATE_QUEUED)


async def test_a_task_that_refers_to_what_a_finished_one_does_not_have_fails_and_is_not_retried(
    graph: GraphBench,
) -> None:
    first = await graph.task()
    await graph.complete(first, RESULT)
    second = await graph.task(template="retried", parameters={"text": ref(first, "nothing.here")})
    found = await graph.status(second, "failed")
    assert found["error"]["type"] == "reference"
    run = await graph.prefect.run(found["flow_run_id"])
    assert run is not None and run["state_type"] == "FAILED"
    assert len(await graph.prefect.all_runs(second)) == 1
    assert await graph.prefect.due() == []


@pytest.mark.parametrize(
    ("method", "when"),
    [("propose", "before"), ("set_parameters", "before"), ("set_parameters", "after"), ("propose", "after")],
)
async def test_a_release_that_was_interrupted_anywhere_is_done_again(
    tmp_path: Path, database_url: str, prefect: PrefectDouble, method: str, when: str
) -> None:
    async with open_graph_bench(tmp_path, database_url, prefect) as graph:
        ids = await graph.batch({"name": "draft"}, {"name": "review", "parameters": {"text": ref("draft")}})
        await graph.run_of(ids["review"], STATE_HELD)
        draft = await graph.run_of(ids["draft"], STATE_QUEUED)
        await graph.prefect.start(draft["id"])
        await graph.prefect.complete(draft["id"], RESULT)
        stop = prefect.stop(method, when)
        await wait_until(stop.reached.is_set, description=f"a call of {method} stands")
    prefect.go_on()
    async with open_graph_bench(tmp_path, database_url, prefect) as graph:
        run = await graph.run_of(ids["review"], STATE_QUEUED)
        assert run["parameters"] == {"text": "text"}
        assert await prefect.due() == [run["id"]]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_failure_that_was_interrupted_is_done_again(
    tmp_path: Path, database_url: str, prefect: PrefectDouble, when: str
) -> None:
    async with open_graph_bench(tmp_path, database_url, prefect) as graph:
        ids = await graph.batch({"name": "draft"}, {"name": "review", "parameters": {"text": ref("draft", "no")}})
        await graph.run_of(ids["review"], STATE_HELD)
        stop = prefect.stop("write_report", when)
        await graph.complete(ids["draft"], RESULT)
        await wait_until(stop.reached.is_set, description="the report stands")
    prefect.go_on()
    async with open_graph_bench(tmp_path, database_url, prefect) as graph:
        assert (await graph.status(ids["review"], "failed"))["error"]["type"] == "reference"


async def test_a_lost_reply_does_no_harm(graph: GraphBench) -> None:
    graph.prefect.lose_replies("set_parameters", 2)
    ids = await graph.batch({"name": "draft"}, {"name": "review", "parameters": {"text": ref("draft")}})
    await graph.run_of(ids["review"], STATE_HELD)
    await graph.complete(ids["draft"], RESULT)
    run = await graph.run_of(ids["review"], STATE_QUEUED)
    assert run["parameters"] == {"text": "text"}


async def test_parameters_that_prefect_refuses_fail_the_task_and_end_its_run(
    graph: GraphBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise PrefectRefusedError("Prefect refused the request (422): too large", status=422)

    monkeypatch.setattr(graph.prefect, "set_parameters", refuse)
    monkeypatch.setattr(dispatcher, "MAX_REFUSALS", 2)
    ids = await graph.batch({"name": "draft"}, {"name": "review", "parameters": {"text": ref("draft")}})
    held = await graph.run_of(ids["review"], STATE_HELD)
    await graph.complete(ids["draft"], RESULT)
    error = (await graph.status(ids["review"], "failed"))["error"]
    assert error == {"type": "dispatch", "message": "Prefect refused the request (422): too large"}

    async def over() -> bool:
        return graph.prefect.known[UUID(held["id"])].state.type in FINAL_STATES

    await wait_until(over, timeout=40, description="its flow run is over")


async def test_a_quick_runs_parameters_are_left_alone(graph: GraphBench) -> None:
    run_id = await graph.prefect.quick_run(parameters={"options": {"a": ref("draft")}})

    async def adopted() -> bool:
        return (await graph.client.get(f"/tasks/{run_id}")).status_code == 200

    await wait_until(adopted, description="the quick run is a task")
    run = await graph.prefect.run(run_id)
    assert run is not None and run["parameters"] == {"options": {"a": ref("draft")}}
    assert (await graph.get(run_id))["depends_on"] == []
