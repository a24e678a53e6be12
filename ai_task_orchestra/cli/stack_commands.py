"""`orchestra up` and `orchestra demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ai_task_orchestra.cli import exit_codes
from ai_task_orchestra.errors import OrchestraError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ai_task_orchestra.stack.report import StartReport
    from ai_task_orchestra.stack.start import RunningStack


def register(application: typer.Typer) -> None:
    application.command()(up)
    application.command()(demo)


def up(context: typer.Context) -> None:
    """Start everything and keep it running: PostgreSQL, Prefect, the API, a worker, a model backend."""
    code = _run(context, _stay)
    raise typer.Exit(exit_codes.OK if code is None else code)


def demo(context: typer.Context) -> None:
    """Start everything, ask a model one question, print the answer, stop everything."""
    from ai_task_orchestra.cli.demo import ask

    code = _run(context, ask)
    raise typer.Exit(exit_codes.TASK_FAILED if code is None else code)


async def _stay(stack: RunningStack, report: StartReport) -> int:
    """Say where everything is, and leave the rest to the signals."""
    import asyncio

    from ai_task_orchestra.stack.summary import summary

    for line in summary(stack):
        report.say(line)
    await asyncio.Event().wait()
    return exit_codes.OK


def _run(context: typer.Context, use: Callable[[RunningStack, StartReport], Awaitable[int]]) -> int | None:
    """A stack while `use` runs; whatever goes wrong before that ends with exit code 2."""
    import asyncio

    from rich.console import Console

    from ai_task_orchestra.cli.output import print_error
    from ai_task_orchestra.isolation.own_memory import close_own_memory
    from ai_task_orchestra.logs import configure_logging
    from ai_task_orchestra.settings import load_settings
    from ai_task_orchestra.stack.orphans import OrphanSweep
    from ai_task_orchestra.stack.report import StartReport
    from ai_task_orchestra.stack.run import run_stack

    close_own_memory()
    report = StartReport(Console())
    try:
        settings = load_settings()
        configure_logging(settings.log_level, file=settings.home / "logs" / "up.log")
        return asyncio.run(run_stack(settings, report, lambda stack: use(stack, report), sweep=OrphanSweep()))
    except OrchestraError as exc:
        print_error(exc, traceback=context.obj.verbose)
        raise typer.Exit(exit_codes.USAGE) from exc
