"""Runs of tasks that depend on others: their graph begins with those, and no step runs on references."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from prefect import tags
from prefect.flow_engine import run_flow

from ai_task_orchestra.protocol import LABEL_DEPENDENCIES, TAG_AWAITING_RESULTS, dependency_node
from tests.support.laboratory import Laboratory, answering

# Prefect's client for events leaves its sockets to the garbage collector.
pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

STEPS = """
steps:
  - {type: wait, seconds: 0, when: "{{ absent }}"}
  - {type: ollama_generate, name: ask, model: m, prompt: p}
  - {type: store_result, path: out.txt}
"""
ABSENT = "- {name: absent, type: string, required: false, description: Never given}"


async def finished_with(lab: Laboratory, labels: dict[str, Any]) -> Any:
    lab.steps["ollama_generate"].body = answering("x")
    flow = lab.compile(STEPS, ABSENT)
    made = await lab.client.create_flow_run(flow)
    await lab.client.update_flow_run_labels(made.id, labels)
    state: Any = await run_flow(  # type: ignore[misc]
        flow, flow_run=await lab.client.read_flow_run(made.id), parameters={"absent": None}, return_type="state"
    )
    return await lab.finished(made.id, state)


def edges(done: Any, step: str) -> set[uuid.UUID]:
    return {each.id for each in done.task_runs[step].task_inputs["wait_for"]}


async def test_the_first_step_that_runs_waits_for_the_nodes_of_the_dependencies(lab: Laboratory) -> None:
    done = await finished_with(lab, {LABEL_DEPENDENCIES: "51"})
    assert done.state.is_completed()
    assert edges(done, "ask") == {dependency_node(done.run.id, number) for number in range(51)}
    assert edges(done, "store_result") == {done.task_runs["ask"].id}


@pytest.mark.parametrize("labels", [{}, {LABEL_DEPENDENCIES: "many"}, {LABEL_DEPENDENCIES: ""}])
async def test_a_run_without_dependencies_waits_for_nothing(lab: Laboratory, labels: dict[str, Any]) -> None:
    done = await finished_with(lab, labels)
    assert done.state.is_completed()
    assert "wait_for" not in done.task_runs["ask"].task_inputs or edges(done, "ask") == set()


async def test_a_run_whose_references_were_not_replaced_runs_no_step(lab: Laboratory) -> None:
    flow = lab.compile(STEPS, ABSENT)
    with tags(TAG_AWAITING_RESULTS):
        done = await lab.run(flow, absent=None)
    assert done.state.is_failed()
    assert done.report["error"]["type"] == "reference"
    assert done.report["retryable"] is False
    assert lab.steps["ollama_generate"].calls == []
