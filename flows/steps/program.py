"""What `execute_script` and `run_command` have in common: where a program runs, what it sees, how it fails."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ai_task_orchestra.errors import ScriptError
from flows.clients.processes import base_environment, run_process
from flows.steps import fields as checked
from flows.steps.base import StepContext


def working_folder(context: StepContext) -> Path:
    """The latest clone of this task, else its workspace.

    An earlier output counts as a clone if it has the fields of one and lies in the workspace.
    """
    for outputs in reversed(list(context.earlier.values())):
        path = outputs.get("path")
        if "commit" in outputs and isinstance(path, str) and Path(path).parent == context.workspace:
            return Path(path)
    return context.workspace


async def run_program(
    name: str,
    argv: Sequence[str],
    fields: Mapping[str, Any],
    context: StepContext,
    *,
    cwd: Path,
    network: bool = True,
) -> dict[str, Any]:
    """Run it with the environment every program gets, the model server's address, and the step's own `env`.

    Args:
        name: how errors call it.
        argv: program and arguments.
        fields: the step's; `env` is taken from them.
        context: the step's.
        cwd: where it runs.
        network: False closes the network for it.

    Raises:
        ScriptError: it ended with a code other than 0, or by a signal.
        StepInputError: it can't be started.
    """
    env = base_environment(context.workspace)
    env |= {"OLLAMA_HOST": context.settings.ollama_url} | checked.environment(fields)
    end = await run_process(
        argv,
        cwd=cwd,
        env=env,
        max_output_bytes=context.settings.max_output_bytes,
        network=network,
        record=lambda peak, cpu: context.usage.add_process(peak_rss_bytes=peak, cpu_seconds=cpu),
    )
    if end.exit_code != 0:
        reason = f": {end.error_line}" if end.error_line else ""
        raise ScriptError(f"{name} {_how_it_ended(end.exit_code)}{reason}", exit_code=end.exit_code)
    return {"output": end.stdout, "stderr": end.stderr, "exit_code": end.exit_code, "truncated": end.truncated}


def _how_it_ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by signal {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
