"""Prefect's event stream as hints: which flow run changed its state.

The stream is lossy and early (an event may come before its change is committed), so it only says where to look.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from uuid import UUID

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from api.prefect_http import CONNECT_SECONDS, PrefectUnreachableError
from api.prefect_types import RunEvent, required_moment

PREFIX: Final = "prefect.flow-run."
#: A claim changes nothing that a client sees, and the regular looks are soon enough to know the worker by.
UNHEARD: Final = (f"{PREFIX}heartbeat", f"{PREFIX}Pending")
#: A silent connection is asked for a sign of life this often.
PING_SECONDS: Final = 10.0


@contextlib.asynccontextmanager
async def subscribe(url: str, auth_string: str | None) -> AsyncIterator[AsyncIterator[RunEvent]]:
    """State changes of flow runs from now on, without any from before.

    Raises:
        PrefectUnreachableError: Prefect does not answer, refuses us, or (from the iterator) the connection broke.
    """
    address = f"{url.replace('http', 'ws', 1)}/events/out"
    try:
        async with connect(
            address,
            subprotocols=["prefect"],  # type: ignore[list-item]
            open_timeout=CONNECT_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
            close_timeout=1,
            proxy=None,
        ) as socket:
            await _greet(socket, auth_string)
            yield _events(socket)
    except (OSError, TimeoutError, WebSocketException) as exc:
        raise PrefectUnreachableError("Prefect's event stream does not answer", sent=False) from exc


async def _greet(socket: ClientConnection, auth_string: str | None) -> None:
    """1. say who we are; 2. say what we want to hear."""
    await socket.send(json.dumps({"type": "auth", "token": auth_string}))
    if json.loads(await socket.recv()).get("type") != "auth_success":
        raise PrefectUnreachableError("Prefect's event stream does not accept our credentials", sent=False)
    wanted = {
        "event": {"prefix": [PREFIX], "exclude_name": list(UNHEARD)},
        # The filter's times are Prefect's and we have none of our own to add: all events, which means all new ones.
        "occurred": {"since": "2000-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"},
    }
    await socket.send(json.dumps({"type": "filter", "filter": wanted, "backfill": False}))


async def _events(socket: ClientConnection) -> AsyncIterator[RunEvent]:
    async for message in socket:
        data = json.loads(message)
        event = _parse(data.get("event") or {}) if data.get("type") == "event" else None
        if event is not None:
            yield event
    raise PrefectUnreachableError("Prefect closed its event stream", sent=False)


def _parse(event: Mapping[str, Any]) -> RunEvent | None:
    """None for what is no state change of a flow run."""
    resource = event.get("resource") or {}
    head, _, tail = str(resource.get("prefect.resource.id", "")).rpartition(".")
    try:
        run_id = UUID(tail)
        # A state change has the id of its state.
        state_id = UUID(event["id"]) if resource.get("prefect.state-type") else None
        occurred = required_moment(event["occurred"])
    except (ValueError, KeyError):
        return None
    name = resource.get("prefect.state-name")
    return RunEvent(run_id, state_id, occurred, name) if f"{head}." == PREFIX else None
