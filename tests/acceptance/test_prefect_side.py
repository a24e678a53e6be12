"""What Prefect's users see: the run with its steps, logs and artifact; deployments; Quick Runs that become tasks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.acceptance.conftest import ROOT, RunningStack
from tests.support.waiting import wait_until_sync


def test_the_ui_shows_run_steps_logs_and_answer(stack: RunningStack, page: Page, tmp_path: Path) -> None:
    task_id = stack.submit("ollama-inference", {"model": "llama3.1:8b", "prompt": "What can a qubit be?"})
    task = stack.wait_for(task_id)

    page.goto(task["flow_run_url"])
    expect(page.get_by_text(f"ollama-inference-{task_id[:8]}").first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Completed").first).to_be_visible()
    expect(page.get_by_text("ollama_generate").first).to_be_visible()
    expect(page.get_by_text("Beginning flow run").first).to_be_visible()
    page.get_by_text("Task Runs", exact=True).click()
    expect(page.get_by_role("link", name="ollama_generate").first).to_be_visible()
    page.screenshot(path=tmp_path / "task-runs.png")
    page.get_by_text("Artifacts", exact=True).click()
    expect(page.get_by_text("Answer", exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "artifacts.png")
    page.get_by_text("markdown", exact=True).click()
    expect(page.get_by_text("Qubits can be both.").first).to_be_visible()
    page.screenshot(path=tmp_path / "answer.png")


def test_prefect_deploy_registers_the_deployments_that_bootstrap_made(stack: RunningStack) -> None:
    def deployments() -> dict[str, tuple]:
        found = stack.prefect.post("/deployments/filter", json={}).json()
        return {d["name"]: (d["id"], d["entrypoint"], d["work_pool_name"], d["work_queue_name"]) for d in found}

    before = deployments()
    assert before.keys() == {template["name"] for template in stack.api.get("/templates").json()}
    env = stack.environment | {
        "PREFECT_API_URL": stack.prefect_api_url,
        "PREFECT_API_AUTH_STRING": stack.prefect_auth,
        "PREFECT_HOME": str(stack.home / "deploy"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert deployments() == before


def test_a_quick_run_completes_and_appears_as_a_task(stack: RunningStack) -> None:
    deployment = stack.prefect.get("/deployments/name/ollama-inference/ollama-inference").json()
    parameters = {"model": "llama3.1:8b", "prompt": "Started from Prefect's own form"}
    run = stack.prefect.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters}).json()

    wait_until_sync(
        lambda: stack.api.get(f"/tasks/{run['id']}").status_code == 200,
        timeout=15,
        description="the run appears as a task",
    )
    task = stack.wait_for(run["id"])
    assert task["template"] == "ollama-inference"
    assert task["parameters"] == parameters
    assert task["result"] == {"output": "Qubits can be both."}
