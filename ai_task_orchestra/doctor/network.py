"""What answers on the network, and to whom: the API, Prefect, PostgreSQL, the model server."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import httpx
import psutil

from ai_task_orchestra.doctor.findings import Finding, note, ok, problem
from ai_task_orchestra.doctor.versions import check_ollama
from ai_task_orchestra.exposure import is_loopback
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.http import prefect_client

OLLAMA_PORT: Final = 11434
SECONDS: Final = 3.0


def outside_addresses() -> tuple[str, ...]:
    """The addresses under which other machines may reach this one."""
    return tuple(_outside_addresses())


def _outside_addresses() -> Iterator[str]:
    for addresses in psutil.net_if_addrs().values():
        for known in addresses:
            if known.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(known.address.partition("%")[0])
                if not address.is_loopback and not address.is_link_local:
                    yield str(address)


class NetworkChecks:
    """Asks around. `outside`: addresses of this machine that stand for what others see of it."""

    def __init__(self, settings: Settings, database_url: str | None, outside: Sequence[str]) -> None:
        self._settings, self._database_url, self._outside = settings, database_url, outside

    async def all(self) -> list[Finding]:
        """Every check, all at once."""
        found = await asyncio.gather(self._api(), self._prefect(), self._models(), self._postgresql())
        return [finding for findings in found for finding in findings]

    async def _api(self) -> list[Finding]:
        url = self._settings.api_url
        answer = await _get(f"{url}/api/v1/tasks")
        if answer is None:
            return [note("API", f"nothing answers at {url}, so nothing was tried", "start it: `orchestra up`")]
        if answer.status_code == 401:
            return [ok("API", f"{url} answers nobody without a key")]
        says = f"{url} gives {answer.status_code} to a request without a key"
        return [problem("API", says, "it is not this API: see what listens there, or set ORCHESTRA_URL")]

    async def _prefect(self) -> list[Finding]:
        settings, url = self._settings, self._settings.prefect_url
        open_answer = await _get(f"{url}/admin/version")
        if open_answer is None:
            return [note("Prefect", f"nothing answers at {url}, so nothing was tried", "start it: `orchestra up`")]
        if open_answer.status_code == 200:
            mend = "set PREFECT_SERVER_API_AUTH_STRING=user:password for it, and PREFECT_API_AUTH_STRING for us"
            return [problem("Prefect", f"{url} needs no password: whoever reaches it can run flows", mend)]
        found = [await self._prefects_password(), *await self._prefects_neighbours()]
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            says = f"Prefect's password and all parameters travel to {parts.hostname} in the clear"
            found.append(note("Prefect", says, "use https, or a network of your own"))
        if settings.prefect_api_url is None and is_loopback(settings.prefect_host):
            found += await self._seen_from_outside("Prefect", settings.prefect_port, "unset ORCHESTRA_PREFECT_HOST")
        return found

    async def _prefects_password(self) -> Finding:
        url = self._settings.prefect_url
        with contextlib.suppress(httpx.HTTPError):
            async with prefect_client(self._settings) as client:
                if (await client.get("/admin/version")).status_code == 401:
                    mend = "set PREFECT_API_AUTH_STRING to its user:password"
                    return problem("Prefect", f"{url} refuses our password", mend)
        return ok("Prefect", f"{url} answers nobody without its password")

    async def _prefects_neighbours(self) -> list[Finding]:
        """Whether it answers the scripts of any page of the web."""
        answer = await _get(f"{self._settings.prefect_url}/health", {"Origin": "https://elsewhere.invalid"})
        if answer is None or answer.headers.get("access-control-allow-origin") not in (
            "*",
            "https://elsewhere.invalid",
        ):
            return []
        mend = "set PREFECT_SERVER_CORS_ALLOWED_ORIGINS to the address of its own pages"
        return [problem("Prefect", "it lets the scripts of any web page ask it from a browser on this machine", mend)]

    async def _models(self) -> list[Finding]:
        url = self._settings.ollama_url
        parts = urlsplit(url)
        ports = {parts.port or OLLAMA_PORT, OLLAMA_PORT} if is_loopback(parts.hostname or "") else {OLLAMA_PORT}
        wanted = [_get(f"{_at(address, port)}/api/version") for address in self._outside for port in sorted(ports)]
        found = []
        for answer in await asyncio.gather(*wanted):
            if answer is not None and answer.status_code == 200:
                where = answer.request.url.netloc.decode()
                says = f"a model server answers at {where}: whoever reaches it can use, replace and fetch models"
                mend = "start Ollama with OLLAMA_HOST=127.0.0.1, or close the port in the firewall; it has no passwords"
                found.append(problem("models", says, mend))
        version = await _get(f"{url}/api/version")
        if version is None:
            return [*found, note("models", f"no model server answers at {url}")]
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.append(check_ollama(str(version.json()["version"])))
        return found

    async def _postgresql(self) -> list[Finding]:
        parts = urlsplit(self._database_url or "")
        if parts.hostname is None or not is_loopback(parts.hostname):
            return []
        mend = "set listen_addresses = 'localhost' in postgresql.conf, or close the port in the firewall"
        return await self._seen_from_outside("PostgreSQL", parts.port or 5432, mend)

    async def _seen_from_outside(self, name: str, port: int, mend: str) -> list[Finding]:
        """A server that should be for this machine only and can be reached from others."""
        for address in self._outside:
            if await _connects(address, port):
                return [note(name, f"{name} can be reached from other machines, at {address}:{port}", mend)]
        return [ok(name, f"{name} can't be reached from other machines")] if self._outside else []


def _at(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


async def _get(url: str, headers: dict[str, str] | None = None) -> httpx.Response | None:
    """The answer, None if there is none."""
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False, verify=url.startswith("https:")) as client:
        try:
            return await client.get(url, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL):
            return None


async def _connects(address: str, port: int) -> bool:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(SECONDS):
            _, writer = await asyncio.open_connection(address, port)
        writer.close()
        return True
    return False
