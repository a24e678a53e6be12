"""What a running API holds, opened by its lifespan, and how a request gets at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from ai_task_orchestra.settings import Settings

if TYPE_CHECKING:
    from ai_task_orchestra.library import TemplateLibrary
    from api.audit import AuditStore
    from api.batch_service import BatchService
    from api.key_ring import KeyRing
    from api.keys import ApiKeyStore
    from api.service import TaskService
    from api.throttle import RequestRate, WrongKeys


@dataclass(frozen=True)
class Rooms:
    """One API process: its settings and everything that is open."""

    settings: Settings
    library: TemplateLibrary
    tasks: TaskService
    batches: BatchService
    keys: KeyRing
    key_store: ApiKeyStore
    audit: AuditStore
    wrong_keys: WrongKeys
    request_rate: RequestRate


def rooms_of(request: Request) -> Rooms:
    """The rooms of the application that serves `request`."""
    rooms: Rooms = request.app.state.rooms
    return rooms


async def _open_rooms(request: Request) -> Rooms:
    """`rooms_of` as a dependency. FastAPI runs dependencies that are not coroutines in a thread, which takes longer."""
    return rooms_of(request)


OpenRooms = Annotated[Rooms, Depends(_open_rooms)]
