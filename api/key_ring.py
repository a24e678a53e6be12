"""Which keys open the API: the operator's setting, the key file, and the stored ones."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Generic, Protocol, TypeVar
from uuid import UUID

from ai_task_orchestra.api_keys import looks_like_key
from ai_task_orchestra.settings import Settings
from api.errors import STORAGE_ERRORS
from api.identity import Identity

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")

#: How long a look-up is believed: the time a revocation may take (5 s promised) less some room for a slow database.
TRUST_SECONDS: Final = 3.0
MAX_REMEMBERED: Final = 4096
#: `last_used_at` is for people who look for forgotten keys: this exact is enough, and a write per request is not.
LAST_USE_STEP_SECONDS: Final = 60.0
#: How often it is looked whether there is a last use to write.
LAST_USE_LOOK_SECONDS: Final = 5.0
#: Compared with where there is nothing to compare with, so that every key takes the same steps. No key has it.
_NO_DIGEST: Final = bytes(32)


class KeyLookup(Protocol):
    """Where stored keys are found; `api.keys.ApiKeyStore` is the real one."""

    async def find(self, key_hash: str) -> Identity | None:
        """The holder of the key with this hash; None if there is none, or it is revoked or expired."""

    async def count_usable(self) -> int:
        """How many stored keys would open the API now."""

    async def note_used(self, uses: Mapping[UUID, datetime]) -> None:
        """Write down when keys were last used."""


class _Memory(Generic[_Value]):
    """Values by hash, each believed for `TRUST_SECONDS`; the oldest go when there are too many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, _Value]] = OrderedDict()

    def get(self, key_hash: str) -> _Value | None:
        until, value = self._known.get(key_hash, (0.0, None))
        return value if until > self._clock() else None

    def put(self, key_hash: str, value: _Value) -> None:
        self._known[key_hash] = (self._clock() + TRUST_SECONDS, value)
        self._known.move_to_end(key_hash)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def clear(self) -> None:
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)


class KeyRing:
    """Tells whose key it is. Knows the present time by `clock`, in seconds."""

    def __init__(self, settings: Settings, stored: KeyLookup, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._stored, self._clock = settings, stored, clock
        # Two memories: a flood of wrong keys must not make us forget the right ones.
        self._right: _Memory[Identity] = _Memory(clock)
        self._wrong: _Memory[bool] = _Memory(clock)
        self._file: tuple[float, bytes] | None = None
        self.last_use = LastUse(stored, clock)

    async def identify(self, presented: bytes) -> Identity | None:
        """The holder of `presented`, or None. Whatever bytes arrive, this does not raise.

        Wrong keys can't be told apart by their timing: a key is compared as a whole, by its SHA-256, with both
        configured keys, and looked up by that hash, whatever it begins with. Only one that is no key by its shape
        spares the database the question, which tells nothing but that shape.
        """
        digest = hashlib.sha256(presented).digest()
        expected = {"operator": _digest(self._settings.api_key), "key-file": self._file_digest()}
        configured = [name for name, known in expected.items() if hmac.compare_digest(digest, known)]
        if configured:
            return Identity(configured[0])
        if not looks_like_key(presented.decode("ascii", errors="replace")):
            return None
        identity = _unexpired(await self._look_up(digest.hex()))
        if identity is not None and identity.key_id is not None:
            self.last_use.note(identity.key_id)
        return identity

    async def has_any(self) -> bool:
        """Whether any key at all would be accepted."""
        if (_digest(self._settings.api_key), self._file_digest()) != (_NO_DIGEST, _NO_DIGEST):
            return True
        return await self._stored.count_usable() > 0

    def forget(self) -> None:
        """Believe no look-up any more: a key has just been revoked or rotated."""
        self._right.clear()

    def _file_digest(self) -> bytes:
        """Read again every few seconds, so that a renewed key file needs no restart."""
        now = self._clock()
        if self._file is None or self._file[0] <= now:
            self._file = (now + TRUST_SECONDS, _digest(read_key_file(self._settings)))
        return self._file[1]

    async def _look_up(self, key_hash: str) -> Identity | None:
        if self._wrong.get(key_hash):
            return None
        if (known := self._right.get(key_hash)) is not None:
            return known
        identity = await self._stored.find(key_hash)
        if identity is None:
            self._wrong.put(key_hash, True)
        else:
            self._right.put(key_hash, identity)
        return identity


class LastUse:
    """Notes in memory when stored keys are used, and writes it down in the background."""

    def __init__(self, stored: KeyLookup, clock: Callable[[], float] = time.monotonic) -> None:
        self._stored, self._clock = stored, clock
        self._noted: dict[UUID, datetime] = {}
        self._written: dict[UUID, float] = {}

    def note(self, key_id: UUID) -> None:
        """A key is used now."""
        self._noted[key_id] = datetime.now(UTC)

    async def write(self) -> None:
        """Write what was noted, for each key at most once a minute; the rest stays noted."""
        now = self._clock()
        due = {
            key_id: at
            for key_id, at in self._noted.items()
            if now - self._written.get(key_id, -LAST_USE_STEP_SECONDS) >= LAST_USE_STEP_SECONDS
        }
        if not due:
            return
        await self._stored.note_used(due)
        self._written |= dict.fromkeys(due, now)
        self._noted = {key_id: at for key_id, at in self._noted.items() if at != due.get(key_id)}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write in the background, and what is left at the end."""
        work = asyncio.create_task(self._run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._try()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LAST_USE_LOOK_SECONDS)
            await self._try()

    async def _try(self) -> None:
        try:
            await self.write()
        except STORAGE_ERRORS as exc:  # it stays noted
            logger.warning("last_use_not_written", extra={"reason": type(exc).__name__})


def read_key_file(settings: Settings) -> str | None:
    """The key in `ORCHESTRA_HOME/api-key`, if that file is there and readable."""
    try:
        return settings.api_key_file.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        logger.warning("key_file_unreadable", extra={"reason": type(exc).__name__})
        return None


def _digest(key: str | None) -> bytes:
    """SHA-256 of a configured key; an empty or blank one opens nothing."""
    return hashlib.sha256(key.encode()).digest() if key and key.strip() else _NO_DIGEST


def _unexpired(identity: Identity | None) -> Identity | None:
    """Expiry counts at once, also for a remembered look-up."""
    if identity is None or (identity.expires_at is not None and identity.expires_at <= datetime.now(UTC)):
        return None
    return identity
