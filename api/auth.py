"""Who asks: the `X-API-Key` header, compared as bytes of SHA-256 in constant time, and what its key may do.

A request under `/api/v1` without a valid key learns nothing else: the check comes before its body, its parameters and
even the question whether its path exists.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Protocol

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from ai_task_orchestra.api_keys import looks_like_key
from ai_task_orchestra.settings import Settings
from api.errors import ApiError
from api.rooms import OpenRooms

logger = logging.getLogger(__name__)

HEADER: Final = "X-API-Key"
READ: Final = "read"
WRITE: Final = "write"
DEFAULT_TENANT: Final = "default"

#: How long a look-up is believed: the time a revocation may take (5 s promised) less some room for a slow database.
TRUST_SECONDS: Final = 3.0
MAX_REMEMBERED: Final = 4096
MAX_KEY_LENGTH: Final = 512

#: Wrong keys per minute and address that are still told so; a key has 130 random bits, this only spares log and CPU.
MAX_FAILURES_PER_MINUTE: Final = 1000


@dataclass(frozen=True)
class Identity:
    """The holder of a valid key."""

    name: str
    tenant: str = DEFAULT_TENANT
    scopes: frozenset[str] = frozenset({READ, WRITE})
    expires_at: datetime | None = None


class KeyLookup(Protocol):
    """Where stored keys are found; `api.keys.ApiKeyStore` is the real one."""

    async def find(self, key_hash: str) -> Identity | None:
        """The holder of the key with this hash; None if there is none, or it is revoked or expired."""

    async def count_usable(self) -> int:
        """How many stored keys would open the API now."""


class KeyRing:
    """Every key that opens the API: the operator's setting, the key file, and the stored ones."""

    def __init__(self, settings: Settings, stored: KeyLookup, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._stored, self._clock = settings, stored, clock
        self._remembered: OrderedDict[str, tuple[float, Identity | None]] = OrderedDict()
        self._file: tuple[float, bytes | None] | None = None

    async def identify(self, presented: bytes) -> Identity | None:
        """The holder of `presented`, or None. Whatever bytes arrive, this neither raises nor tells by its timing."""
        digest = hashlib.sha256(presented).digest()
        for name, expected in (("operator", self._operator_digest()), ("key-file", self._file_digest())):
            if expected is not None and hmac.compare_digest(digest, expected):
                return Identity(name)
        # The checksum in a generated key spares the database all other guesses.
        if not looks_like_key(presented.decode("ascii", errors="replace")):
            return None
        return _unexpired(await self._look_up(digest.hex()))

    async def has_any(self) -> bool:
        """Whether any key at all would be accepted."""
        if self._operator_digest() is not None or self._file_digest() is not None:
            return True
        return await self._stored.count_usable() > 0

    def _operator_digest(self) -> bytes | None:
        return _digest(self._settings.api_key)

    def _file_digest(self) -> bytes | None:
        """Read again every few seconds, so that a renewed key file needs no restart."""
        now = self._clock()
        if self._file is None or self._file[0] <= now:
            self._file = (now + TRUST_SECONDS, _digest(read_key_file(self._settings)))
        return self._file[1]

    async def _look_up(self, key_hash: str) -> Identity | None:
        now = self._clock()
        known = self._remembered.get(key_hash)
        if known is not None and known[0] > now:
            return known[1]
        identity = await self._stored.find(key_hash)
        self._remembered[key_hash] = (now + TRUST_SECONDS, identity)
        self._remembered.move_to_end(key_hash)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return identity


class FailureCount:
    """Counts wrong keys per address in windows of a minute. Valid keys are never held back."""

    def __init__(self, limit: int = MAX_FAILURES_PER_MINUTE, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._window, self._counts = 0, dict[str, int]()

    def record(self, address: str) -> bool:
        """Count one failure; whether `address` is now over the limit."""
        window = int(self._clock() // 60)
        if window != self._window:
            self._window, self._counts = window, {}
        self._counts[address] = self._counts.get(address, 0) + 1
        return self._counts[address] > self._limit


_header_scheme = APIKeyHeader(name=HEADER, scheme_name="ApiKey", auto_error=False, description="An API key.")


async def authenticate(
    request: Request, rooms: OpenRooms, _: Annotated[str | None, Security(_header_scheme)] = None
) -> Identity:
    """The holder of the request's key.

    Raises:
        ApiError: 401 without exactly one valid `X-API-Key` header; 429 for an address that keeps trying.
    """
    values = [value for name, value in request.headers.raw if name.lower() == HEADER.lower().encode()]
    if len(values) == 1 and 0 < len(values[0]) <= MAX_KEY_LENGTH:
        identity = await rooms.keys.identify(values[0])
        if identity is not None:
            request.scope["api_key_name"] = identity.name
            return identity
        if request.app.state.failures.record(request.client.host if request.client else "unknown"):
            logger.warning("too_many_wrong_keys", extra={"client": request.client.host if request.client else None})
            raise ApiError(429, "too_many_wrong_keys", "Too many wrong API keys.", headers={"Retry-After": "60"})
    raise ApiError(
        401,
        "unauthenticated",
        f"A valid API key is needed in the header {HEADER}.",
        headers={"WWW-Authenticate": f'ApiKey realm="ai-task-orchestra", header="{HEADER}"'},
    )


Caller = Annotated[Identity, Depends(authenticate)]


async def authorise_change(caller: Caller) -> Identity:
    """The caller, if its key may change anything.

    Raises:
        ApiError: 403 for a read-only key.
    """
    if WRITE not in caller.scopes:
        raise ApiError(403, "forbidden_scope", "This API key may only read.")
    return caller


Writer = Annotated[Identity, Depends(authorise_change)]


def read_key_file(settings: Settings) -> str | None:
    """The key in `ORCHESTRA_HOME/api-key`, if that file is there and readable."""
    try:
        return settings.api_key_file.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        logger.warning("key_file_unreadable", extra={"reason": type(exc).__name__})
        return None


def _digest(key: str | None) -> bytes | None:
    """SHA-256 of a configured key; an empty or blank one opens nothing."""
    return hashlib.sha256(key.encode()).digest() if key and key.strip() else None


def _unexpired(identity: Identity | None) -> Identity | None:
    """Expiry counts at once, also for a remembered look-up."""
    if identity is None or (identity.expires_at is not None and identity.expires_at <= datetime.now(UTC)):
        return None
    return identity
