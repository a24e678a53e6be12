"""Who asks: the `X-API-Key` header, and whether its key may do what is asked.

A request under `/api/v1` without a valid key learns nothing else: the check comes before its body, its parameters and
even the question whether its path exists. A key is accepted in that header only, never in an address.
"""

from __future__ import annotations

import logging
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from api.errors import ApiError, retry_after
from api.identity import ADMIN, READ, SUBMIT, Author, Identity
from api.rooms import OpenRooms, Rooms

logger = logging.getLogger(__name__)

HEADER: Final = "X-API-Key"
MAX_KEY_LENGTH: Final = 512

_REFUSALS: Final = {
    READ: "This API key may not look at anything.",
    SUBMIT: "This API key may only read.",
    ADMIN: "This needs an API key with the scope admin.",
}

_header_scheme = APIKeyHeader(name=HEADER, scheme_name="ApiKey", auto_error=False, description="An API key.")


async def authenticate(
    request: Request, rooms: OpenRooms, _: Annotated[str | None, Security(_header_scheme)] = None
) -> Identity:
    """The holder of the request's key.

    Raises:
        ApiError: 401 without exactly one valid `X-API-Key` header; 429 for an address that keeps trying wrong ones,
            and for a key that asks more often than it may.
    """
    values = [value for name, value in request.headers.raw if name.lower() == HEADER.lower().encode()]
    if len(values) == 1 and 0 < len(values[0]) <= MAX_KEY_LENGTH:
        identity = await rooms.keys.identify(values[0])
        if identity is not None:
            request.scope["api_key_name"] = identity.name
            _count_request(rooms, identity)
            return identity
    if values:
        _count_wrong_key(rooms, request)
    raise ApiError(
        401,
        "unauthenticated",
        f"A valid API key is needed in the header {HEADER}.",
        headers={"WWW-Authenticate": f'ApiKey realm="ai-task-orchestra", header="{HEADER}"'},
    )


def _count_request(rooms: Rooms, identity: Identity) -> None:
    per_minute = identity.limits.requests_per_minute
    if identity.key_id is None or per_minute is None:
        return
    if wait := rooms.request_rate.admit(identity.key_id, per_minute):
        detail = f"This API key may send {per_minute} requests per minute."
        raise ApiError(429, "too_many_requests", detail, headers=retry_after(wait))


def _count_wrong_key(rooms: Rooms, request: Request) -> None:
    address = request.client.host if request.client else None
    if wait := rooms.wrong_keys.record(address):
        logger.debug("too_many_wrong_keys", extra={"client": address})
        raise ApiError(429, "too_many_wrong_keys", "Too many wrong API keys.", headers=retry_after(wait))


def _require(identity: Identity, scope: str) -> None:
    if scope not in identity.scopes:
        raise ApiError(403, "forbidden_scope", _REFUSALS[scope])


async def authorise_reading(identity: Annotated[Identity, Depends(authenticate)]) -> Identity:
    """The caller, if its key may look at tasks.

    Raises:
        ApiError: 403.
    """
    _require(identity, READ)
    return identity


async def authorise_change(identity: Annotated[Identity, Depends(authenticate)], request: Request) -> Author:
    """The caller as author of a change, if its key may make and change tasks.

    Raises:
        ApiError: 403.
    """
    _require(identity, SUBMIT)
    return Author(identity, request.scope.get("request_id"))


async def authorise_administration(identity: Annotated[Identity, Depends(authenticate)], request: Request) -> Author:
    """The caller as author of a change, if its key may see to keys and read the audit.

    Raises:
        ApiError: 403.
    """
    _require(identity, ADMIN)
    return Author(identity, request.scope.get("request_id"))


Caller = Annotated[Identity, Depends(authorise_reading)]
Writer = Annotated[Author, Depends(authorise_change)]
Admin = Annotated[Author, Depends(authorise_administration)]
