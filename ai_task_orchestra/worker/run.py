"""Runs a worker in this process."""

from __future__ import annotations

import logging

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from ai_task_orchestra.settings import Settings
from ai_task_orchestra.worker.worker import OrchestraWorker

_log = logging.getLogger(__name__)


async def run_worker(settings: Settings, *, pool: str | None = None) -> None:
    """Serve a work pool (default: the settings' one); returns after SIGTERM or SIGINT, once everything has ended.

    To be awaited on the main thread of a process of its own.
    """
    updates = {PREFECT_API_URL: settings.prefect_url}
    if settings.prefect_auth_string:
        updates[PREFECT_API_AUTH_STRING] = settings.prefect_auth_string
    with temporary_settings(updates):
        worker = OrchestraWorker(pool or settings.work_pool, settings=settings)
        extra = {"worker": worker.name, "work_pool": pool or settings.work_pool, "limit": worker.slots}
        _log.info("worker.starting", extra=extra)
        await worker.start(printer=lambda _: None)
        _log.info("worker.stopped", extra={"worker": worker.name})
