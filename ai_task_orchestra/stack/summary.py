"""What `orchestra up` prints when everything is there: addresses and lines to paste, never a secret."""

from __future__ import annotations

import json
import shlex

from ai_task_orchestra.stack.start import RunningStack

EXAMPLE_PROMPT = "What is the capital of France?"


def summary(stack: RunningStack) -> list[str]:
    """The lines. Keys and passwords are named by the file they are in."""
    settings = stack.settings
    lines = ["", f"Ready after {stack.started_in_seconds:.1f} s.", f"  API         {stack.api_url}/api/v1"]
    lines.append(f"  API docs    {stack.api_url}/docs")
    if settings.prefect_api_url is None:
        password = "PREFECT_API_AUTH_STRING" if settings.prefect_auth_string else settings.prefect_auth_file
        lines.append(f"  Prefect UI  {settings.prefect_ui_url}   (its password: {password})")
    else:
        lines.append(f"  Prefect     {settings.prefect_url}")
    lines.append(f"  API key     {stack.key_file}")
    lines.append(f"  logs        {settings.home / 'logs'}")
    return [*lines, "", *examples(stack), "", "Ctrl-C stops everything."]


def examples(stack: RunningStack) -> list[str]:
    """Commands that work when pasted into a shell: a new task, and the tasks there are."""
    header = f'-H "X-API-Key: $(cat {shlex.quote(str(stack.key_file))})"'
    model = stack.model.first_text_model if stack.model else "smollm2:135m"
    task = json.dumps({"template": "ollama-inference", "parameters": {"model": model, "prompt": EXAMPLE_PROMPT}})
    tasks = f"{stack.api_url}/api/v1/tasks"
    return [
        f"  curl -s {header} -H 'Content-Type: application/json' -d {shlex.quote(task)} {tasks}",
        f"  curl -s {header} {tasks}",
    ]
