"""A graph of 20 tasks in one call: diamonds, results as parameters, one branch that fails; and how Prefect shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ai_task_orchestra.protocol import GROUP_FLOW, run_name
from tests.acceptance.conftest import RunningStack
from tests.support.prefect_bench import drawn
from tests.support.waiting import wait_until_sync

ANSWER = "Qubits can be both."
DIAMONDS = range(4)


def task(name: str, prompt: Any, *depends_on: str, model: str = "llama3.1:8b", **more: Any) -> dict[str, Any]:
    parameters = {"model": model, "prompt": prompt}
    return {"name": name, "template": "ollama-inference", "parameters": parameters, "depends_on": [*depends_on], **more}


def result_of(name: str) -> dict[str, str]:
    return {"$result": name, "path": "output"}


def diamond(number: int) -> list[dict[str, Any]]:
    top, left, right, bottom = (f"{place}-{number}" for place in ("top", "left", "right", "bottom"))
    return [
        task(bottom, result_of(left), right),
        task(left, result_of(top)),
        task(right, "Another view", top),
        task(top, f"Topic {number}"),
    ]


def edges(tasks: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Whom each task waits for, by name."""
    found = {each["name"]: set(each["depends_on"]) for each in tasks}
    for each in tasks:
        if isinstance(reference := each["parameters"]["prompt"], dict):
            found[each["name"]].add(reference["$result"])
    return found


def graph(stack: RunningStack, run_id: str) -> dict[str, tuple[str, set[str]]]:
    """State and parents of each node of a flow run's graph, by name."""
    return drawn(stack.prefect.get(f"/flow_runs/{run_id}/graph-v2").json())


def picture(page: Page, path: Path) -> None:
    """A run's page once its graph is drawn: an empty canvas is a picture of a few kB."""
    canvas = page.locator("canvas").first
    expect(canvas).to_be_visible(timeout=30_000)
    wait_until_sync(lambda: len(canvas.screenshot()) > 15_000, timeout=60, description="the graph is drawn")
    page.screenshot(path=path)


@pytest.mark.timeout(300)
def test_a_batch_of_twenty_ends_as_its_edges_say_and_is_one_graph(
    stack: RunningStack, page: Page, tmp_path: Path
) -> None:
    tasks = [each for number in DIAMONDS for each in diamond(number)]
    tasks += [
        task("broken", "Nobody answers", model="no-such-model"),
        task("after-broken", "Never asked", "broken"),
        task("anyway", "Asked all the same", "broken", on_dependency_failure="run"),
        task("summary", result_of("bottom-0"), *(f"bottom-{number}" for number in DIAMONDS)),
    ]
    assert len(tasks) == 20
    accepted = stack.api.post("/tasks/batch", json={"tasks": tasks})
    assert accepted.status_code == 201, accepted.text
    batch_id, ids = accepted.json()["id"], accepted.json()["tasks"]
    statuses = {each["name"]: "completed" for each in tasks} | {"broken": "failed", "after-broken": "cancelled"}

    batch = wait_until_sync(
        lambda: found if (found := stack.api.get(f"/batches/{batch_id}").json())["status"] == "failed" else None,
        timeout=120,
        description="the batch is over",
    )

    assert {each["name"]: each["status"] for each in batch["tasks"]} == statuses
    assert batch["counts"] == {"queued": 0, "running": 0, "completed": 18, "failed": 1, "cancelled": 1}
    for name in ("left-0", "bottom-3", "summary"):
        found = stack.api.get(f"/tasks/{ids[name]}").json()
        assert "$result" in found["parameters"]["prompt"], "the task shows what was asked for"
        run = stack.prefect.get(f"/flow_runs/{found['flow_run_id']}").json()
        assert (run["parameters"]["prompt"], found["result"]) == (ANSWER, {"output": ANSWER})
    assert stack.api.get(f"/tasks/{ids['broken']}").json()["error"]["type"] == "model_not_found"
    assert ids["broken"] in str(stack.api.get(f"/tasks/{ids['after-broken']}").json()["error"])

    tagged = {"flow_runs": {"tags": {"all_": [f"batch:{batch_id}"]}}, "flows": {"name": {"any_": [GROUP_FLOW]}}}
    [group] = wait_until_sync(
        lambda: [run for run in stack.prefect.post("/flow_runs/filter", json=tagged).json() if run["end_time"]],
        timeout=30,
        description="the group has ended",
    )
    assert (group["state_type"], group["state"]["message"]) == ("FAILED", "18 completed, 1 failed, 1 cancelled.")
    assert graph(stack, group["id"]) == {
        name: (statuses[name].upper(), parents) for name, parents in edges(tasks).items()
    }
    last = stack.api.get(f"/tasks/{ids['summary']}").json()
    of_last = graph(stack, last["flow_run_id"])
    waited_for = {run_name("ollama-inference", ids[f"bottom-{number}"]) for number in DIAMONDS}
    [step] = of_last.keys() - waited_for
    assert of_last[step] == ("COMPLETED", waited_for)

    base = last["flow_run_url"].rpartition("/")[0]
    for name, run_id in {"batch": group["id"], "dependent": last["flow_run_id"]}.items():
        page.goto(f"{base}/{run_id}")
        picture(page, tmp_path / f"{name}.png")
    expect(page.get_by_text(run_name("ollama-inference", ids["summary"])).first).to_be_visible()
