"""What a running API holds, opened by its lifespan, and how a request gets at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from ai_task_orchestra.settings import Settings

if TYPE_CHECKING:
    from ai_task_orchestra.library import TemplateLibrary
    from api.auth import KeyRing
    from api.batch_service import BatchService
    from api.service import TaskService


@dataclass(frozen=True)
class Rooms:
    """One API process: its settings and everything that is open."""

    settings: Settings
    library: TemplateLibrary
    tasks: TaskService
    batches: BatchService
    keys: KeyRing


def rooms_of(request: Request) -> Rooms:
    """The rooms of the application that serves `request`."""
    rooms: Rooms = request.app.state.rooms
    return rooms


async def _open_rooms(request: Request) -> Rooms:
    """`rooms_of` as a dependency. FastAPI runs dependencies that are not coroutines in a thread, which takes longer."""
    return rooms_of(request)


OpenRooms = Annotated[Rooms, Depends(_open_rooms)]
