from __future__ import annotations

from ai_task_orchestra.cli.demo import outcome
from ai_task_orchestra.client import TaskDetail
from tests.unit.cli.fake_api import task


def shown(**more: object) -> str:
    detail: TaskDetail = task(**more)  # type: ignore[assignment]
    return "\n".join(outcome(detail))


def test_the_answer_comes_with_its_usage_and_its_page_in_prefect() -> None:
    text = shown(
        status="completed",
        result={"output": " Paris. \n"},
        resource_usage={"model_name": "smollm2:135m", "inference_time_seconds": 0.4},
        flow_run_url="http://127.0.0.1:4200/runs/flow-run/1",
    )
    assert text.startswith("\nParis.\n")
    assert "inference_time_seconds   0.4" in text
    assert text.endswith("http://127.0.0.1:4200/runs/flow-run/1")


def test_a_failure_is_shown_with_its_reason() -> None:
    assert "model_not_found: there is no model x" in shown(
        status="failed", error={"type": "model_not_found", "message": "there is no model x"}
    )


def test_a_result_without_output_is_shown_as_it_is() -> None:
    assert "{'count': 3}" in shown(status="completed", result={"count": 3})
