"""`/keys`: API keys, for whoever has one with the scope `admin`. A key itself is shown by the call that makes it."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Response

from ai_task_orchestra.errors import NotFoundError
from api import key_schemas, responses, submission
from api.auth import Admin
from api.documentation import COUNTED, REQUEST_BODY_KEY, REQUEST_BODY_ROTATION, located, problems
from api.guard import Limit, Offset, json_body, optional_json_body
from api.identity import Limits
from api.keys import NewKey
from api.responses import JsonAnswer
from api.rooms import OpenRooms

router = APIRouter(prefix="/keys", tags=["keys"])

LIMITS: Final = ("templates", "max_priority", "max_queued", "max_running", "requests_per_minute")


@router.post(
    "",
    status_code=201,
    response_model=key_schemas.KeyShown,
    summary="Create an API key",
    responses=located("Where the key is described.") | problems(400, 408, 413, 415, 422),
    openapi_extra=REQUEST_BODY_KEY,
)
async def create_key(by: Admin, rooms: OpenRooms, body: Annotated[Any, Depends(json_body)]) -> Response:
    """Make a key. Its text is in this answer and nowhere else: only a hash of it is stored."""
    wanted = submission.read(body, key_schemas.KeyRequest)
    given = {name: getattr(wanted, name) for name in LIMITS}
    templates = given["templates"]
    limits = Limits(**given | {"templates": None if templates is None else tuple(templates)})
    new = NewKey(wanted.name, wanted.tenant, tuple(wanted.scopes), wanted.expires_at, limits)
    stored, key = await rooms.key_store.create(new, by=by)
    return JsonAnswer(responses.api_key(stored, key), 201, {"Location": f"/api/v1/keys/{stored.id}"})


@router.get(
    "", response_model=list[key_schemas.KeyDescribed], summary="List API keys", responses=COUNTED | problems(422)
)
async def list_keys(_: Admin, rooms: OpenRooms, limit: Limit = 100, offset: Offset = 0) -> Response:
    """All keys ever made, oldest first; the header `X-Total-Count` says how many there are."""
    found = await rooms.key_store.list(limit=limit, offset=offset)
    total = await rooms.key_store.count()
    return JsonAnswer([responses.api_key(key) for key in found], headers={"X-Total-Count": str(total)})


@router.get("/{key_id}", response_model=key_schemas.KeyDescribed, summary="Get an API key", responses=problems(404))
async def get_key(key_id: str, _: Admin, rooms: OpenRooms) -> Response:
    """What a key may do, and when it was last used."""
    return JsonAnswer(responses.api_key(await rooms.key_store.get(_key_id(key_id))))


@router.delete(
    "/{key_id}", status_code=204, response_class=Response, summary="Revoke an API key", responses=problems(404)
)
async def revoke_key(key_id: str, by: Admin, rooms: OpenRooms) -> Response:
    """End a key: within 5 s it opens nothing any more. Again is no error."""
    await rooms.key_store.revoke(_key_id(key_id), by=by)
    rooms.keys.forget()
    return Response(status_code=204)


@router.post(
    "/{key_id}/rotate",
    response_model=key_schemas.KeyShown,
    summary="Rotate an API key",
    responses=problems(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=REQUEST_BODY_ROTATION,
)
async def rotate_key(
    key_id: str, by: Admin, rooms: OpenRooms, body: Annotated[Any, Depends(optional_json_body)]
) -> Response:
    """Give a key a new text. The present one is accepted for `overlap_seconds` longer; everything else stays."""
    wanted = submission.read({} if body is None else body, key_schemas.RotationRequest)
    overlap = timedelta(seconds=wanted.overlap_seconds)
    stored, key = await rooms.key_store.rotate(_key_id(key_id), overlap=overlap, by=by)
    rooms.keys.forget()
    return JsonAnswer(responses.api_key(stored, key))


def _key_id(text: str) -> uuid.UUID:
    """A path's key id; what is not a canonical UUID is nobody's, and never reaches the database."""
    if not submission.well_formed(text):
        raise NotFoundError("There is no such API key.")
    return uuid.UUID(text)
