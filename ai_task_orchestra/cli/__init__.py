"""The command `orchestra`.

Prefect and everything else that takes long to import is imported by the commands that need it.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ai_task_orchestra.cli import exit_codes
from ai_task_orchestra.cli.app import Invocation, application
from ai_task_orchestra.cli.output import print_error
from ai_task_orchestra.errors import OrchestraError


def main() -> NoReturn:
    """Run the command and end the process with its exit code."""
    invocation = Invocation()
    try:
        sys.exit(application(obj=invocation))
    except OrchestraError as exc:
        print_error(exc, traceback=invocation.verbose)
        sys.exit(exit_codes.exit_code(exc))
    except BrokenPipeError:
        # Whoever read our output has enough of it (`orchestra list | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_codes.OK)
    except KeyboardInterrupt:
        sys.exit(130)
