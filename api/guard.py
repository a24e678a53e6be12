"""What a request must be before anything of ours looks at it: its media type, its size, its headers, its text."""

from __future__ import annotations

import asyncio
import re
from email.message import Message
from typing import Annotated, Any, Final

from fastapi import Query, Request
from pydantic import BeforeValidator, Field

from api import strict_json
from api.errors import ApiError
from api.rooms import OpenRooms

MAX_IDEMPOTENCY_KEY: Final = 255
MAX_LIMIT: Final = 1000
MAX_OFFSET: Final = 10**9
#: A client that sends its body drop by drop holds a connection no longer than this.
BODY_SECONDS: Final = 30.0
_VISIBLE_ASCII = re.compile(rf"[\x21-\x7e]{{1,{MAX_IDEMPOTENCY_KEY}}}")
_DIGITS = re.compile(r"-?[0-9]{1,19}", re.ASCII)


async def json_body(request: Request, rooms: OpenRooms) -> Any:
    """The request's JSON value, read no further than the limit and checked as `api.strict_json` says.

    Raises:
        ApiError: 415 for another media type or a compressed body, 413 for one that is too large,
            408 for one that is too slow, else 400 or 422.
    """
    _check_media_type(request)
    body = await _read(request, rooms.settings.max_body_bytes)
    return strict_json.parse(body, max_nesting=rooms.settings.max_nesting)


async def optional_json_body(request: Request, rooms: OpenRooms) -> Any:
    """The same, or None for a request without a body.

    Raises:
        ApiError: as `json_body`.
    """
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return None
    return await json_body(request, rooms)


async def idempotency_key(request: Request) -> str | None:
    """The `Idempotency-Key` header: 1 to 255 visible ASCII characters, at most once.

    Raises:
        ApiError: 400.
    """
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    if len(values) > 1 or _VISIBLE_ASCII.fullmatch(values[0]) is None:
        detail = f"Idempotency-Key must be one header of 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters."
        raise ApiError(400, "invalid_idempotency_key", detail)
    return values[0]


def _check_media_type(request: Request) -> None:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    charset = header.get_param("charset", "utf-8")
    if header.get_content_type() != "application/json" or str(charset).lower() not in ("utf-8", "utf8"):
        raise ApiError(415, "unsupported_media_type", "The body must be application/json in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_encoding", "A compressed body is not accepted.")


async def _read(request: Request, limit: int) -> bytes:
    """The body; refused by its announced length, and while streaming, because that header may be absent or wrong."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > limit):
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError as exc:
        detail = f"The body did not arrive within {BODY_SECONDS:g} s."
        raise ApiError(408, "body_too_slow", detail, headers={"Connection": "close"}) from exc
    return b"".join(chunks)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"The body is larger than {limit} bytes.", headers={"Connection": "close"})


def _only_digits(value: Any) -> Any:
    """Pydantic also reads `5.0`, `1_0` and ` 5 ` as integers; a query has digits or is wrong."""
    if isinstance(value, str) and _DIGITS.fullmatch(value) is None:
        raise ValueError("must be written in digits and fit 64 bits")
    return value


#: Stands after the constraints of an integer in a query.
Digits = BeforeValidator(_only_digits)
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT), Digits, Query(description="Maximum number of items to return.")]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET), Digits, Query(description="Pagination offset.")]
#: A text in a query; PostgreSQL can't even be asked about one that holds NUL.
CleanText = Annotated[str, Field(pattern=r"^[^\x00]*$")]
