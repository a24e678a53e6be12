"""What `execute_script` and `run_command` have in common: where a program runs, what it sees, how it fails."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ai_task_orchestra.errors import LimitError, ScriptError
from ai_task_orchestra.redaction import without_our_secrets, without_secrets
from flows.clients.confinement import Confinement, confined
from flows.clients.processes import run_process
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
    confinement: Confinement,
) -> dict[str, Any]:
    """Run it with the environment every program gets, the model server's address, and the step's own `env`.

    Args:
        name: how errors call it.
        argv: program and arguments.
        fields: the step's; `env` is taken from them.
        context: the step's.
        cwd: where it runs.
        confinement: what stands around it.

    Raises:
        ScriptError: it ended with a code other than 0, or by a signal.
        LimitError: it used too much.
        StepInputError: it can't be started.
    """
    _tell_isolation(name, context, confinement)
    env = confinement.environment()
    env |= {"OLLAMA_HOST": context.settings.ollama_url} | checked.environment(fields)
    try:
        end = await run_process(
            argv,
            cwd=cwd,
            env=env,
            max_output_bytes=context.settings.max_output_bytes,
            confinement=confinement,
            record=lambda peak, cpu: context.usage.add_process(peak_rss_bytes=peak, cpu_seconds=cpu),
        )
    except LimitError as exc:
        raise LimitError(f"{name}: {exc.message}", limit=exc.limit) from exc
    if end.exit_code != 0:
        reason = f": {without_secrets(end.error_line)}" if end.error_line else ""
        raise ScriptError(f"{name} {_how_it_ended(end.exit_code)}{reason}", exit_code=end.exit_code)
    return {
        "output": without_our_secrets(end.stdout),
        "stderr": without_our_secrets(end.stderr),
        "exit_code": end.exit_code,
        "truncated": end.truncated,
        "isolation_level": confinement.level,
    }


def confinement_of(fields: Mapping[str, Any], context: StepContext) -> Confinement:
    """How the program of this step is confined; the network is closed unless the template grants it.

    Raises:
        IsolationError: not as the settings ask for.
    """
    network = checked.flag(fields, "network", default=False)
    return confined(context.settings, context.workspace, network=network)


def _tell_isolation(name: str, context: StepContext, confinement: Confinement) -> None:
    """Into the task's log and its report, so that everybody can see it afterwards."""
    context.usage.add_isolation(confinement.level)
    network = "with" if confinement.network else "without"
    context.log.info("%s runs at isolation level %d, %s network", name, confinement.level, network)
    if confinement.open:
        level = logging.INFO if confinement.level else logging.WARNING
        context.log.log(level, "At this isolation level a program can also reach: %s", "; ".join(confinement.open))


def _how_it_ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by signal {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
