"""JSON as RFC 8259 means it, and nothing that would poison a stored row.

400 malformed_json      not UTF-8, a byte order mark, a syntax error, no content
400 duplicate_key       an object with the same name twice
400 non_finite_number   NaN, Infinity, or a number too large for a double
422 too_deep            nested deeper than the limit
422 out_of_range        an integer that does not fit 64 bits with a sign
422 invalid_text        NUL or a lone surrogate in any text or name: PostgreSQL can't hold the one, UTF-8 the other
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

from api.errors import ApiError

INTEGERS: Final = range(-(2**63), 2**63)
_LONGEST_INTEGER: Final = len(str(INTEGERS.start))


def parse(body: bytes, *, max_nesting: int) -> Any:
    """The value that `body` holds.

    Raises:
        ApiError: with one of the codes in this module's docstring.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _malformed("it is not UTF-8") from exc
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        raise _malformed(f"{exc.msg} at line {exc.lineno} column {exc.colno}") from exc
    except RecursionError as exc:
        raise _too_deep(max_nesting) from exc
    if text.count("[") + text.count("{") > max_nesting:
        _check_nesting(value, max_nesting)
    if "\\u" in text:  # otherwise neither NUL nor a surrogate can be in it: both need an escape
        _check_text(value)
    return value


def _malformed(why: str) -> ApiError:
    return ApiError(400, "malformed_json", f"The body is not JSON: {why}.")


def _too_deep(limit: int) -> ApiError:
    return ApiError(422, "too_deep", f"The body is nested deeper than {limit} levels.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ApiError(400, "duplicate_key", "An object in the body has the same name twice.")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER or (value := int(digits)) not in INTEGERS:
        raise ApiError(422, "out_of_range", "An integer in the body does not fit 64 bits.")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _not_finite(digits)
    return value


def _not_finite(_: str) -> NoReturn:
    raise ApiError(400, "non_finite_number", "A number in the body is not finite; JSON has no NaN and no Infinity.")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_not_finite, strict=True
)


def _check_nesting(value: Any, limit: int) -> None:
    """Level by level, so that no depth can exhaust the stack."""
    level = [value]
    for _ in range(limit + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return
        level = [child for box in containers for child in (box.values() if isinstance(box, dict) else box)]
    raise _too_deep(limit)


def _check_text(value: Any) -> None:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            _check_one(item)
        elif isinstance(item, list):
            left.extend(item)
        elif isinstance(item, dict):
            left.extend(item)
            left.extend(item.values())


def _check_one(text: str) -> None:
    if "\0" in text or not _encodes(text):
        raise ApiError(422, "invalid_text", "A text in the body holds NUL or half of a surrogate pair.")


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
