"""Ports: taken ones named with the setting to change, free ones found."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import time

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.settings import Settings

# Below the range from which systems take the ports of outgoing connections: a server that is started again finds its
# port still free.
OWN_PORTS = range(20000, 30000)
POLL_SECONDS = 0.2


async def check_ports(settings: Settings, *, wait_seconds: float = 0.0) -> None:
    """Make sure that the ports we are told to use are free, waiting up to `wait_seconds` for them.

    Raises:
        ConfigurationError: one is taken, or the address is none of this machine's; names the setting to change.
    """
    wanted = [("ORCHESTRA_PORT", settings.host, settings.port)]
    if settings.prefect_api_url is None:
        wanted.append(("ORCHESTRA_PREFECT_PORT", settings.prefect_host, settings.prefect_port))
        if settings.port == settings.prefect_port:
            raise ConfigurationError(f"ORCHESTRA_PORT and ORCHESTRA_PREFECT_PORT are both {settings.port}")
    deadline = time.monotonic() + wait_seconds
    for variable, host, port in wanted:
        while problem := _bind_problem(host, port):
            if problem != errno.EADDRINUSE:
                where = f"{host}:{port}"
                raise ConfigurationError(
                    f"can't listen on {where}: {os.strerror(problem)}; change ORCHESTRA_HOST or {variable}"
                )
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"port {port} on {host} is taken by another program; stop it or choose another with {variable}"
                )
            await asyncio.sleep(POLL_SECONDS)


def own_port() -> int:
    """A free loopback port for a server of ours whose address nobody needs to know."""
    for _ in range(200):
        port = secrets.choice(OWN_PORTS)
        if not _bind_problem("127.0.0.1", port):
            return port
    raise ConfigurationError(f"no free port between {OWN_PORTS[0]} and {OWN_PORTS[-1]} on 127.0.0.1")


def _bind_problem(host: str, port: int) -> int:
    """The error number that a server would get there; 0 for none."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as exc:
            return exc.errno or errno.EINVAL
    return 0
