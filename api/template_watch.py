"""Notices changes in the template folder while the API runs, and has their deployments registered in Prefect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from ai_task_orchestra.errors import DispatchError
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.environment import prefect_client_environment

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 1.0
FIRST_BACKOFF_SECONDS: Final = 1.0
LONGEST_BACKOFF_SECONDS: Final = 60.0
BOOTSTRAP_TIMEOUT_SECONDS: Final = 120.0
_MAX_LOGGED_OUTPUT: Final = 2000
_NOT_FOR_BOOTSTRAP: Final = frozenset({"ORCHESTRA_API_KEY", "ORCHESTRA_DATABASE_URL"})


class TemplateWatch:
    """Refreshes the library once a second; after a change it deploys until that succeeds, waiting longer each time.

    A change while deploying counts too: the next deployment follows as soon as the present one has ended.
    """

    def __init__(
        self,
        library: TemplateLibrary,
        deploy: Callable[[], Awaitable[None]],
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        first_backoff_seconds: float = FIRST_BACKOFF_SECONDS,
    ) -> None:
        self._library, self._deploy = library, deploy
        self._interval_seconds, self._first_backoff_seconds = interval_seconds, first_backoff_seconds
        self._outdated = False
        self._not_before = 0.0
        self._failures = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch in the background; a deployment under way is stopped at the end."""
        tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._deploy_changes())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                changed = self._library.refresh()
            except Exception:  # a watch that died would go unnoticed; the next look may succeed
                logger.exception("templates_refresh_failed")
                continue
            if changed:
                logger.info("templates_changed", extra={"templates": len(self._library.templates)})
                self._outdated, self._not_before, self._failures = True, 0.0, 0

    async def _deploy_changes(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            if not self._outdated or time.monotonic() < self._not_before:
                continue
            self._outdated = False
            try:
                await self._deploy()
            except Exception as exc:
                self._retry_later(exc)
            else:
                self._failures = 0
                logger.info("deployments_registered")

    def _retry_later(self, error: Exception) -> None:
        delay = min(self._first_backoff_seconds * 2**self._failures, LONGEST_BACKOFF_SECONDS)
        self._failures += 1
        self._outdated, self._not_before = True, time.monotonic() + delay
        logger.warning("deployments_not_registered", extra={"reason": str(error), "retry_seconds": delay})


async def run_bootstrap(settings: Settings, *, module: str = "deployments.bootstrap") -> None:
    """Register the deployments in a process of its own: it loads flows, which the API never imports.

    Raises:
        DispatchError: the process failed or took too long; the message ends with what it said last.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=bootstrap_environment(settings),
    )
    try:
        async with asyncio.timeout(BOOTSTRAP_TIMEOUT_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError as exc:
        raise DispatchError(f"registering deployments took more than {BOOTSTRAP_TIMEOUT_SECONDS:g} s") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = output.decode(errors="replace").strip()[-_MAX_LOGGED_OUTPUT:]
        raise DispatchError(f"registering deployments ended with exit code {process.returncode}: {said}")


def bootstrap_environment(settings: Settings) -> dict[str, str]:
    """Variables for the child: our settings may have come from a `.env` file or from code, and it needs no secrets."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_BOOTSTRAP}
    return (
        inherited
        | prefect_client_environment(settings)
        | {
            "ORCHESTRA_HOME": str(settings.home),
            "ORCHESTRA_TEMPLATES_DIR": str(settings.templates_dir),
            "ORCHESTRA_WORK_POOL": settings.work_pool,
        }
    )
