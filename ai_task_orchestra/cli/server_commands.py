"""The parts of a stack as commands of their own, as production runs them: `api`, `worker`, `bootstrap`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ai_task_orchestra.settings import Settings

WAIT_SECONDS = 300.0

Wait = Annotated[float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for Prefect.")]


def register(application: typer.Typer) -> None:
    application.command()(api)
    application.command()(worker)
    application.command()(bootstrap)


def api() -> None:
    """Serve the REST API."""
    import asyncio

    settings = _prepared()
    # By name, here and below: the shared package imports no other room.
    asyncio.run(importlib.import_module("api.serve").serve(settings))


def worker(
    pool: Annotated[str | None, typer.Option(help="Prefect work pool; default: ORCHESTRA_WORK_POOL.")] = None,
    wait: Wait = WAIT_SECONDS,
) -> None:
    """Run the tasks of a work pool on this machine."""
    import asyncio

    from ai_task_orchestra.stack.http import pool_path, wait_for_prefect

    settings = _prepared()
    name = pool or settings.work_pool
    # Loading Prefect takes seconds: done before the wait, it costs nothing while the server starts as well.
    run_worker = importlib.import_module("ai_task_orchestra.worker").run_worker

    async def run() -> None:
        await wait_for_prefect(settings, pool_path(name), wait)
        await run_worker(settings, pool=name)

    asyncio.run(run())


def bootstrap(wait: Wait = WAIT_SECONDS) -> None:
    """Register work pool, queues and one deployment for each template with Prefect."""
    import asyncio

    from ai_task_orchestra.cli.output import print_line
    from ai_task_orchestra.stack.http import wait_for_prefect

    settings = _prepared()
    register_all = importlib.import_module("deployments.bootstrap").bootstrap

    async def run() -> list[str]:
        await wait_for_prefect(settings, "/ready", wait)
        names: list[str] = await register_all(settings)
        return names

    for name in asyncio.run(run()):
        print_line(name)


def _prepared() -> Settings:
    """Settings, logging, and Prefect's own variables; in this order, before anything imports Prefect."""
    import os

    from ai_task_orchestra.isolation.own_memory import close_own_memory
    from ai_task_orchestra.logs import configure_logging
    from ai_task_orchestra.settings import load_settings
    from ai_task_orchestra.stack.environment import prefect_client_environment

    close_own_memory()
    settings = load_settings()
    configure_logging(settings.log_level)
    os.environ.update(prefect_client_environment(settings))
    return settings
