"""`execute_script`: runs a script of the repository that was cloned before."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from ai_task_orchestra.errors import StepInputError
from flows.clients.confinement import Confinement
from flows.paths import open_regular, parts_of
from flows.steps import fields as checked
from flows.steps.base import StepContext
from flows.steps.program import confinement_of, run_program, working_folder

# The kernel's own limit for a `#!` line.
_FIRST_LINE_BYTES: Final = 256


class ExecuteScript:
    """Runs a script without needing its executable bit: by its `#!` line, else by its extension.

    It runs at the top of the clone (without one: of the workspace), confined as `flows.clients.confinement` says.
    Python scripts without a `#!` line run with the worker's own interpreter, which always exists; what else is
    installed for that one is an accident to the script.
    """

    type: ClassVar[str] = "execute_script"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: script, args, env, network."""
        script = checked.text(fields, "script")
        arguments = checked.texts(fields, "args")
        folder, confinement = working_folder(context), confinement_of(fields, context)
        argv = [*_interpreter(folder, script, confinement), *arguments]
        return await run_program(script, argv, fields, context, cwd=folder, confinement=confinement)


def _interpreter(folder: Path, script: str, confinement: Confinement) -> list[str]:
    """The command line up to and with the script."""
    names = parts_of(script, field="script")
    fd = open_regular(folder, names, field="script")
    with open(fd, "rb") as file:  # noqa: PTH123
        line = file.readline(_FIRST_LINE_BYTES)
    path = str(folder.joinpath(*names))
    if line.startswith(b"#!"):
        return [*_first_line(line[2:]), path]
    match Path(path).suffix.lower():
        case ".py":
            return [_python(confinement), path]
        case ".sh" | ".bash":
            return ["bash", path]
        case ".js" | ".mjs" | ".cjs":
            return ["node", path]
    raise StepInputError("script: it has neither a #! line nor an extension that says how to run it (.py, .sh, .js)")


def _python(confinement: Confinement) -> str:
    """The worker's own, unless it lies where the task's account can't go."""
    ours = Path(sys.executable)
    return str(ours) if confinement.may_enter(ours) and confinement.may_enter(ours.resolve()) else "python3"


def _first_line(line: bytes) -> list[str]:
    """Interpreter and, as the kernel reads it, everything behind as one argument; a Windows line end is forgiven."""
    interpreter, _, argument = os.fsdecode(line).strip().partition(" ")
    if not interpreter.startswith("/"):
        raise StepInputError("script: the #! line must name its interpreter by an absolute path")
    return [interpreter, *([argument.strip()] if argument.strip() else [])]
