"""Short questions over HTTP to the servers of a stack."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from urllib.parse import quote

import httpx

from ai_task_orchestra.errors import ConfigurationError, UnreachableError
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.environment import prefect_client_environment

TIMEOUT_SECONDS = 2.0
POLL_SECONDS = 0.1


def plain_client() -> httpx.AsyncClient:
    """For servers of ours on this machine: no proxy, and no time spent on reading certificates."""
    return httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, verify=False)  # noqa: S501 (no TLS involved)


def prefect_client(settings: Settings, auth: str | None = None) -> httpx.AsyncClient:
    """For Prefect's REST API, with its password; `auth` as in `prefect_client_environment`."""
    known = prefect_client_environment(settings, auth)
    headers, basic = {}, None
    if password := known.get("PREFECT_API_AUTH_STRING"):
        basic = httpx.BasicAuth(*password.split(":", 1)) if ":" in password else None
    elif key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(
        base_url=settings.prefect_url,
        timeout=TIMEOUT_SECONDS,
        auth=basic,
        headers=headers,
        trust_env=settings.prefect_api_url is not None,
        verify=settings.prefect_url.startswith("https:"),
    )


def pool_path(name: str) -> str:
    """Where Prefect's REST API has a work pool."""
    return f"/work_pools/{quote(name, safe='')}"


async def wait_for_prefect(settings: Settings, path: str, timeout_seconds: float) -> None:
    """Return once a GET of `path` on Prefect's API gives 200.

    Raises:
        ConfigurationError: Prefect refuses our password.
        UnreachableError: it did not within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    last = "no answer"
    async with prefect_client(settings) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.get(path)
                if answer.status_code == 200:
                    return
                if answer.status_code == 401:
                    raise ConfigurationError(
                        f"Prefect at {settings.prefect_url} refuses us; "
                        "set PREFECT_API_AUTH_STRING to its user:password"
                    )
                last = f"{path} gives {answer.status_code}"
            await asyncio.sleep(POLL_SECONDS)
    raise UnreachableError(f"Prefect at {settings.prefect_url} is not ready: {last}")
