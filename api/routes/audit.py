"""`/audit`: who changed what, for whoever has a key with the scope `admin`."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime

from api import key_schemas, responses
from api.audit import AuditFilter
from api.auth import Admin
from api.documentation import problems
from api.guard import CleanText, Limit, Offset
from api.responses import JsonAnswer
from api.rooms import OpenRooms

router = APIRouter(tags=["audit"])


@router.get("/audit", response_model=list[key_schemas.AuditListed], summary="Read the audit", responses=problems(422))
async def list_audit(
    _: Admin,
    rooms: OpenRooms,
    kind: Annotated[CleanText | None, Query(description="What happened, for example `task_created`.")] = None,
    task_id: Annotated[uuid.UUID | None, Query(description="Only about this task.")] = None,
    key_id: Annotated[uuid.UUID | None, Query(description="Only about this API key.")] = None,
    actor_key_id: Annotated[uuid.UUID | None, Query(description="Only what was done with this API key.")] = None,
    request_id: Annotated[CleanText | None, Query(description="Only what was done in this request.")] = None,
    since: Annotated[AwareDatetime | None, Query(description="Nothing older than this.")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Response:
    """Every change, newest first: who asked for it with which key in which request, and what it was."""
    which = AuditFilter(kind, task_id, key_id, actor_key_id, request_id, since)
    found = await rooms.audit.page(which, limit=limit, offset=offset)
    return JsonAnswer([responses.audit_entry(entry) for entry in found])
