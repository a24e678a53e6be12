"""`/health` and `/ready`: for load balancers and people, without a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from ai_task_orchestra import __version__
from ai_task_orchestra.errors import TemplateError
from api import schemas
from api.responses import JsonAnswer
from api.rooms import OpenRooms

router = APIRouter(tags=["health"])


@router.get("/health", response_model=schemas.Health, summary="Is the API there?")
async def health() -> Response:
    """200 once the API serves; asks nobody else."""
    return JsonAnswer({"status": "ok", "version": __version__})


@router.get(
    "/ready",
    response_model=schemas.Ready,
    summary="Can tasks run?",
    responses={503: {"model": schemas.NotReady, "description": "What is missing."}},
)
async def ready(rooms: OpenRooms) -> Response:
    """200 only when database and Prefect answer. Broken template files are listed and leave it 200."""
    missing = await rooms.tasks.readiness()
    about: dict[str, Any] = {
        "templates": len(rooms.library.templates),
        "broken_templates": [_broken(problem) for problem in rooms.library.problems],
    }
    if not missing:
        return JsonAnswer({"status": "ready"} | about)
    said = "; ".join(f"{what}: {why}" for what, why in sorted(missing.items()))
    return JsonAnswer(
        {"status": "not ready", "detail": f"Not ready: {said}", "code": "not_ready", "missing": missing} | about, 503
    )


def _broken(problem: TemplateError) -> dict[str, Any]:
    """Which file and why; only the file's name, since where folders lie is nobody's business here."""
    found = {"file": problem.path.name if problem.path else None, "line": problem.line, "reason": problem.reason}
    return {name: value for name, value in found.items() if value is not None}
