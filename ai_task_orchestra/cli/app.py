"""The commands and their options; each imports what it needs when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ai_task_orchestra import __version__
from ai_task_orchestra.cli import (
    batch_commands,
    doctor_command,
    key_commands,
    server_commands,
    stack_commands,
    task_commands,
)


@dataclass
class Invocation:
    """What the options before the command say."""

    verbose: bool = False


application = typer.Typer(
    name="orchestra",
    help="Queue AI work, run it in order of priority, see it in Prefect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"orchestra {__version__}")
        raise typer.Exit


@application.callback()
def options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Queue AI work, run it in order of priority, see it in Prefect."""
    context.obj.verbose = verbose


for _commands in (stack_commands, task_commands, batch_commands, server_commands, doctor_command):
    _commands.register(application)
application.add_typer(key_commands.application, name="keys")
