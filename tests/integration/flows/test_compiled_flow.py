"""Compiled templates run in this process against a real Prefect server: states, task runs, logs, artifacts."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.flow_engine import run_flow

from ai_task_orchestra.errors import ScriptError, StepError
from ai_task_orchestra.protocol import LABEL_TENANT, idempotency_key
from flows.steps.base import StepContext
from tests.support.laboratory import Laboratory, answering, failing

# Prefect's client for events leaves its sockets to the garbage collector.
pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


ASK = """
steps:
  - {type: ollama_generate, name: ask, model: m, prompt: "{{ text }}"}
"""
TEXT = "- {name: text, type: string, description: Text}"


async def test_a_run_shows_named_steps_an_answer_and_a_report(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = answering("Paris <b>!</b>", prompt_tokens=3)
    lab.steps["store_result"].body = answering(None, path="out.txt", bytes=14)
    flow = lab.compile(ASK + "  - {type: store_result, path: out.txt}\n", TEXT)

    done = await lab.run(flow, text="Capital of France?")

    assert done.state.is_completed()
    assert done.run.state_name == "Completed"
    assert await done.state.result() == {"output": "Paris <b>!</b>"}
    assert {name: run.state_name for name, run in done.task_runs.items()} == {
        "ask": "Completed",
        "store_result": "Completed",
    }
    upstream = done.task_runs["store_result"].task_inputs["wait_for"]
    assert [str(each.id) for each in upstream if hasattr(each, "id")] == [str(done.task_runs["ask"].id)]
    assert lab.steps["store_result"].calls == [{"path": "out.txt", "content": "Paris <b>!</b>"}]
    assert done.report | {"resource_usage": {}} == {
        "version": 1,
        "task_id": str(done.run.id),
        "generation": 1,
        "worker": "lab-worker",
        "result": {"output": "Paris <b>!</b>"},
        "resource_usage": {},
    }
    assert done.report["resource_usage"]["memory_used_gb"] > 0
    assert done.answer is not None
    assert done.answer.startswith("```text\nParis <b>!</b>\n```")
    assert next(each for each in done.artifacts if each.type == "markdown").description == "Answer"


async def test_what_a_step_logs_is_in_prefects_log_of_its_task_run(lab: Laboratory) -> None:
    async def body(_: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        context.log.info("half way through")
        return {"output": "x"}

    lab.steps["ollama_generate"].body = body
    done = await lab.run(lab.compile(ASK, TEXT), text="x")
    lines = await lab.logs(done.run.id, "half way through")
    (line,) = [each for each in lines if each.message == "half way through"]
    assert (line.task_run_id, line.level) == (done.task_runs["ask"].id, logging.INFO)


async def test_a_run_of_our_own_reports_its_task_and_generation(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = answering("x")
    flow = lab.compile(ASK, TEXT)
    task_id = str(uuid.uuid4())
    body = {
        "flow_id": str(await lab.client.create_flow(flow)),
        "parameters": {"text": "x"},
        "idempotency_key": idempotency_key(task_id, 3),
        "labels": {LABEL_TENANT: "lab"},
    }
    created = await lab.client.request("POST", "/flow_runs/", json=body)
    run = await lab.client.read_flow_run(uuid.UUID(created.json()["id"]))

    state: Any = await run_flow(flow, flow_run=run, return_type="state")  # type: ignore[misc]
    done = await lab.finished(run.id, state)

    assert (done.report["task_id"], done.report["generation"]) == (task_id, 3)
    (context,) = lab.steps["ollama_generate"].contexts
    assert (context.task_id, context.tenant, context.step_name) == (task_id, "lab", "ask")
    assert context.workspace == lab.settings.workspaces / task_id / "3"


async def test_the_workspace_exists_for_the_steps_only(lab: Laboratory) -> None:
    seen: list[Path] = []

    async def body(_: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        assert context.workspace.stat().st_mode & 0o777 == 0o700
        (context.workspace / "deep").mkdir()
        (context.workspace / "deep" / "file").write_text("x")
        seen.append(context.workspace)
        return {}

    lab.steps["wait"].body = body
    await lab.run(lab.compile("steps: [{type: wait, seconds: 1}]"))
    assert not seen[0].parent.exists()


async def test_a_parameters_value_is_never_rendered(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = answering("{{ text }} {{ steps.ask.output }}")
    rest = "  - {type: store_result, path: p, content: 'A: {{ steps.ask.output }}'}\n"
    await lab.run(lab.compile(ASK + rest, TEXT), text="{{ steps.ask.output }}{{ text }}")
    assert lab.steps["ollama_generate"].calls[0]["prompt"] == "{{ steps.ask.output }}{{ text }}"
    assert lab.steps["store_result"].calls[0]["content"] == "A: {{ text }} {{ steps.ask.output }}"


async def test_absent_optional_parameters_drop_their_fields_and_defaults_fill_in(lab: Laboratory) -> None:
    parameters = """
    - {name: system, type: string, required: false, description: System}
    - {name: temperature, type: number, required: false, description: Temperature, default: 0.5}
    """
    rest = """
    steps:
      - type: ollama_generate
        model: m
        prompt: "({{ system }})"
        system: "{{ system }}"
        options: {temperature: "{{ temperature }}", stop: "{{ system }}"}
    """
    flow = lab.compile(rest, parameters)
    await lab.run(flow)
    await lab.run(flow, system=None)  # what Prefect's form sends for an empty field
    expected = {"model": "m", "prompt": "()", "options": {"temperature": 0.5}}
    assert lab.steps["ollama_generate"].calls == [expected, expected]


@pytest.mark.parametrize(("value", "runs"), [(None, False), (0, False), (1, True)])
async def test_a_step_is_skipped_unless_its_condition_has_a_value(
    lab: Laboratory, value: int | None, runs: bool
) -> None:
    parameters = "- {name: n, type: integer, required: false, description: N}"
    rest = """
    steps:
      - {type: wait, seconds: 1, when: "{{ n }}"}
      - {type: ollama_generate, model: m, prompt: p}
    """
    lab.steps["ollama_generate"].body = answering("x")
    done = await lab.run(lab.compile(rest, parameters), **({} if value is None else {"n": value}))
    assert done.state.is_completed()
    assert bool(lab.steps["wait"].calls) is runs
    assert ("wait" in done.task_runs) is runs


async def test_a_result_mapping_is_rendered_with_its_types(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = answering("x", prompt_tokens=7, parsed={"a": [1]})
    rest = ASK + (
        'result: {tokens: "{{ steps.ask.prompt_tokens }}", nested: {value: "{{ steps.ask.parsed }}"}, '
        'none: "{{ steps.ask.done_reason }}", text: "{{ text }}!"}\n'
    )
    done = await lab.run(lab.compile(rest, TEXT), text="hi")
    assert done.report["result"] == {"tokens": 7, "nested": {"value": {"a": [1]}}, "text": "hi!"}


async def test_the_first_step_that_fails_fails_the_run_with_step_and_reason(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = failing(ScriptError("run.py ended with exit code 7: boom\0", exit_code=7))
    flow = lab.compile(ASK + "  - {type: store_result, path: p}\n", TEXT)

    done = await lab.run(flow, text="x")

    assert (done.run.state_name, done.run.state.message if done.run.state else "") == (
        "Failed",
        "step 'ask': run.py ended with exit code 7: boom\ufffd",
    )
    assert done.task_runs["ask"].state_name == "Failed"
    assert lab.steps["store_result"].calls == []
    assert done.report["error"] == {
        "type": "script_failed",
        "message": "run.py ended with exit code 7: boom\ufffd",
        "step": "ask",
    }
    assert done.report["retryable"] is True
    assert "memory_used_gb" in done.report["resource_usage"]
    assert "result" not in done.report
    assert done.answer is None
    assert all("Traceback" not in line.message for line in await lab.logs(done.run.id, "Finished in state Failed"))
    assert all("NoneType" not in line.message for line in await lab.logs(done.run.id, "Finished in state Failed"))


async def test_an_unexpected_exception_shows_its_kind_and_keeps_the_rest_in_the_log(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = failing(ValueError("s3cret"))
    done = await lab.run(lab.compile(ASK, TEXT), text="x")
    assert done.report["error"] == {
        "type": "internal",
        "message": "unexpected ValueError; the run's log has the details",
        "step": "ask",
    }
    assert done.run.state is not None
    assert "s3cret" not in str(done.run.state.message)
    assert any("s3cret" in line.message for line in await lab.logs(done.run.id, "s3cret"))


async def test_a_retryable_failure_is_tried_again_in_place(lab: Laboratory) -> None:
    async def third_time(_: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        if len(lab.steps["ollama_generate"].calls) < 3:
            raise StepError("not yet", retryable=True)
        return {"output": "at last"}

    lab.steps["ollama_generate"].body = third_time
    flow = lab.compile(ASK.replace("model: m", "model: m, retries: 2, retry_delay_seconds: 0.01"), TEXT)
    done = await lab.run(flow, text="x")
    assert done.report["result"] == {"output": "at last"}
    assert done.task_runs["ask"].run_count == 3


async def test_a_step_whose_retries_wait_long_reports_them_and_holds_no_slot(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = failing(StepError("not now", retryable=True))
    flow = lab.compile(ASK.replace("model: m", "model: m, retries: 2, retry_delay_seconds: 60"), TEXT)
    done = await lab.run(flow, text="x")
    assert len(lab.steps["ollama_generate"].calls) == 1
    assert (done.report["error"]["step"], done.report["retryable"]) == ("ask", True)
    assert done.report["step_retry"] == {"retries": 2, "delay_seconds": 60.0}


async def test_retries_end_with_the_last_reason(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = failing(StepError("never", retryable=True))
    flow = lab.compile(ASK.replace("model: m", "model: m, retries: 2, retry_delay_seconds: 0.01"), TEXT)
    done = await lab.run(flow, text="x")
    assert len(lab.steps["ollama_generate"].calls) == 3
    assert done.report["error"]["message"] == "never"


async def test_a_failure_that_no_retry_can_mend_is_not_retried(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = failing(StepError("wrong name"))
    flow = lab.compile(ASK.replace("model: m", "model: m, retries: 5, retry_delay_seconds: 0.01"), TEXT)
    done = await lab.run(flow, text="x")
    assert len(lab.steps["ollama_generate"].calls) == 1
    assert done.report["retryable"] is False


async def never(_: Mapping[str, Any], __: StepContext) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def test_a_step_that_takes_too_long_is_ended(lab: Laboratory) -> None:
    lab.steps["wait"].body = never
    parameters = "- {name: limit, type: number, required: false, description: Limit}"
    flow = lab.compile('steps: [{type: wait, seconds: 1, timeout_seconds: "{{ limit }}"}]', parameters)
    done = await lab.run(flow, limit=0.05)
    assert done.report["error"] == {"type": "timeout", "message": "it took longer than 0.05 s", "step": "wait"}
    assert lab.steps["wait"].contexts[0].timeout_seconds == 0.05
    assert done.task_runs["wait"].state_name == "Failed"


async def test_a_time_limit_that_is_none_is_an_error(lab: Laboratory) -> None:
    parameters = "- {name: limit, type: number, required: false, description: Limit}"
    flow = lab.compile('steps: [{type: wait, seconds: 1, timeout_seconds: "{{ limit }}"}]', parameters)
    done = await lab.run(flow, limit=-1)
    assert done.report["error"]["message"] == "timeout_seconds: must be a number above 0"
    assert lab.steps["wait"].calls == []


async def test_the_tasks_time_ends_the_step_that_runs(lab: Laboratory) -> None:
    lab.steps["wait"].body = never
    flow = lab.compile("timeout_seconds: 0.05\nsteps: [{type: wait, seconds: 1, retries: 3}]")
    done = await lab.run(flow)
    assert done.report["error"] == {
        "type": "timeout",
        "message": "the whole task took longer than 0.05 s",
        "step": "wait",
    }
    assert done.report["retryable"] is False
    assert len(lab.steps["wait"].calls) == 1


async def test_a_timeout_of_the_steps_own_making_is_not_taken_for_ours(lab: Laboratory) -> None:
    lab.steps["wait"].body = failing(TimeoutError("s3cret"))
    done = await lab.run(lab.compile("steps: [{type: wait, seconds: 1}]"))
    assert done.report["error"]["type"] == "internal"


async def test_parameters_that_do_not_fit_fail_the_run_before_any_step_without_repeating_them(lab: Laboratory) -> None:
    done = await lab.run(lab.compile(ASK, TEXT), text=53219)
    assert done.report["error"] == {
        "type": "invalid_parameters",
        "message": "text: must be a string, not an integer",
    }
    assert done.run.state is not None
    assert "53219" not in str(done.run.state.message)
    assert lab.steps["ollama_generate"].calls == []


async def test_a_required_field_without_a_value_fails_its_step(lab: Laboratory) -> None:
    parameters = "- {name: text, type: string, required: false, description: Text}"
    done = await lab.run(lab.compile(ASK, parameters))
    assert done.report["error"] == {
        "type": "bad_step_input",
        "message": "prompt: the field has no value",
        "step": "ask",
    }


async def test_an_output_of_the_wrong_type_fails_the_step_that_takes_it(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = answering("x", parsed="no list")
    rest = ASK + "  - {type: read_files, files: '{{ steps.ask.parsed }}'}\n"
    done = await lab.run(lab.compile(rest, TEXT), text="x")
    assert done.report["error"]["message"] == "files: must be array"


async def test_output_that_can_not_be_stored_is_cleaned(lab: Laboratory) -> None:
    lab.steps["ollama_generate"].body = answering("a\0b \ud800 " + "é" * 3, parsed={"n": 2**70, "f": float("nan")})
    rest = ASK + 'result: {output: "{{ steps.ask.output }}", parsed: "{{ steps.ask.parsed }}"}\n'
    done = await lab.run(lab.compile(rest, TEXT), text="x")
    assert done.state.is_completed()
    assert done.report["result"] == {"output": "a\ufffdb \ufffd ééé", "parsed": {"n": str(2**70), "f": None}}


async def test_a_cancelled_flow_writes_no_report_and_its_step_can_clean_up(lab: Laboratory) -> None:
    cleaned = asyncio.Event()
    started = asyncio.Event()

    async def body(_: Mapping[str, Any], __: StepContext) -> dict[str, Any]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return {}

    lab.steps["wait"].body = body
    flow = lab.compile("steps: [{type: wait, seconds: 1}]")
    run = await lab.client.create_flow_run(flow)
    task: asyncio.Task[Any] = asyncio.ensure_future(run_flow(flow, flow_run=run))  # type: ignore[arg-type]
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned.is_set()
    assert not any(lab.settings.workspaces.iterdir())
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    assert await lab.client.read_artifacts(flow_run_filter=only) == []
