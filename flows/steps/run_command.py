"""`run_command`: runs a program that is installed on the worker, without a shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ai_task_orchestra.errors import StepInputError
from flows.steps import fields as checked
from flows.steps.base import StepContext
from flows.steps.program import confinement_of, run_program, working_folder


class RunCommand:
    """Runs one command where `execute_script` runs scripts; each item is one argument, whatever it holds."""

    type: ClassVar[str] = "run_command"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: command, env, network."""
        command = checked.texts(fields, "command")
        if not command or not command[0]:
            raise StepInputError("command: a list that begins with a program is needed")
        confinement = confinement_of(fields, context)
        return await run_program(
            command[0], command, fields, context, cwd=working_folder(context), confinement=confinement
        )
